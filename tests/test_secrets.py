"""Secrets in arguments reach the policy or suite they are for, and no disk, screen or report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from made_runs import INFO, as_before, made_run

from vla_bench import secrets
from vla_bench.cli import main
from vla_bench.compare.duel import DuelConfig
from vla_bench.config import RunConfig
from vla_bench.errors import message_of
from vla_bench.secrets import hidden, hidden_in, is_secret, names, redacted, remember
from vla_bench.store.runs import read_info

SECRET = "sk-pl4nted/€\n'9Z"
"""With letters that Python, JSON, addresses and terminals each write in their own way."""
FORMS = ("pl4nted", "9Z'", "%2F%E2%82%AC")
MODULE = """
import dataclasses, logging, sys
import fakes

SECRET = "sk-pl4nted/€\\n'9Z"

def suite(name, hf_token: str = ""):
    assert hf_token in ("", SECRET)
    toy = fakes.suite("toy")
    return dataclasses.replace(toy, protocol={"login": f"as {hf_token}"}, provenance=lambda: {"toy": f"1 {hf_token}"})

class Client(fakes.Keeper):
    def __init__(self, suite, checkpoint: str = "", api_key: str = "", speed: float = 0.5, fail: bool = False):
        fakes.Walker.__init__(self, suite, speed)
        assert api_key == SECRET or "other" in api_key, "the policy itself gets it"
        note = f"logged in with {api_key} at https://me:{api_key}@host/?token={api_key}"
        self.spec = dataclasses.replace(self.spec, note=note, checkpoint=f"server of {api_key}")
        self.key, self.fail = api_key, fail
        print("made with", api_key, file=sys.stderr)
    def infer(self, observations):
        print("asked with", self.key)
        logging.getLogger("client").warning("asked with %s", self.key)
        if self.fail:
            try:
                raise ConnectionError(401, f"https://me:{self.key}@host refused {self.key!r}")
            except ConnectionError as error:
                raise RuntimeError(f"no answer for {self.key}") from error
        chunks = super().infer(observations)
        return [dataclasses.replace(chunk, stages={f"as {self.key}": 1.0}) for chunk in chunks]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "client.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(secrets, "_memory", secrets._Memory())
    return tmp_path


def insist_on_none(text: str) -> None:
    assert not [form for form in FORMS if form in text]


def insist_on_none_in(*folders: Path) -> None:
    """No file of these folders has it, in its name or content."""
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert files
    for file in files:
        insist_on_none(str(file))
        text = pd.read_parquet(file).to_csv() if file.suffix == ".parquet" else file.read_text("utf-8", "replace")
        insist_on_none(text)


RUN = ["run", "--policy", "client.py:Client", "--suite", "client.py:suite", "--task", "0", "--episodes", "2"]


GIVEN = ["--policy-args", f"api_key={SECRET}", "--suite-args", f"hf_token={SECRET}"]


def test_a_planted_secret_is_in_no_file_and_on_no_screen(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, *GIVEN, "--out", "run"]) == 0
    assert main(["report", "run", "--out", "page"]) == 0
    for command in (["show", "run"], ["show", "run", "--json"], ["leaderboard", "run", "--markdown"]):
        assert main(command) == 0
    insist_on_none_in(folder / "run", folder / "page")
    identity = read_info("run").identity
    assert (identity["policy_args"], identity["suite_args"]) == (["api_key=***"], ["hf_token=***"])
    printed = capfd.readouterr()
    assert "asked with ***" in printed.err
    assert "api_key, hf_token" in printed.err
    insist_on_none(printed.out + printed.err)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_error_that_tells_a_secret_is_kept_without_it(
    folder: Path, capfd: pytest.CaptureFixture[str], workers: str
) -> None:
    given = [*GIVEN[:2], "fail=true", *GIVEN[2:]]
    assert main([*RUN, *given, "--workers", workers, "--out", "run"]) == 4
    insist_on_none_in(folder / "run")
    log = (folder / "run" / "errors.log").read_text("utf-8")
    assert 'ConnectionError: [Errno 401] https://me:***@host refused "***"' in log
    assert "RuntimeError: no answer for ***" in log
    printed = capfd.readouterr()
    assert "raised RuntimeError in infer: no answer for ***" in printed.err
    insist_on_none(printed.out + printed.err)


def test_the_environment_is_asked_when_the_policy_is_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PLANTED", SECRET)
    given = ["--policy-args", "api_key=env:PLANTED", "speed=env:SPEED", "--suite-args", "hf_token=env:PLANTED"]
    assert main([*RUN, *given, "--out", "run"]) == 64
    said = capfd.readouterr().err
    assert "--policy-args speed=env:SPEED is read from the environment, which has no 'SPEED': export it." in said
    monkeypatch.setenv("SPEED", "fast")
    assert main([*RUN, *given, "--out", "run"]) == 64
    assert "speed should be float, got 'env:SPEED'" in capfd.readouterr().err
    monkeypatch.setenv("SPEED", "0.75")
    assert main([*RUN, *given, "--out", "run"]) == 0
    assert read_info("run").identity["policy_args"] == ["api_key=env:PLANTED", "speed=env:SPEED"]
    insist_on_none_in(folder / "run")
    printed = capfd.readouterr()
    insist_on_none(printed.out + printed.err)


def test_a_run_goes_on_with_a_renewed_secret(folder: Path) -> None:
    first = RunConfig("client.py:Client", "client.py:suite", policy_args=(f"api_key={SECRET}",))
    second = replace(first, policy_args=("api_key=another",))
    assert first.identity() == second.identity()
    assert first.path() == second.path()
    duels = [DuelConfig("a.py:A", "b.py:B", "s", policy_args_b=(f"api_key={key}",)) for key in (SECRET, "another")]
    assert duels[0].path() == duels[1].path()
    assert first.identity() != replace(first, policy_args=()).identity()


def test_what_others_write_for_us_has_no_secret_either(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "weights").write_text("0.5", encoding="utf-8")
    asked = ["--policy", "client.py:Client", "--suite", "client.py:suite", "--checkpoint", "weights", *GIVEN]
    assert main(["convert", *asked, "--out", "kept"]) == 0
    assert "arguments: api_key=***" in (folder / "kept").read_text("utf-8")
    insist_on_none((folder / "kept").read_text("utf-8"))
    duel = [
        "duel",
        "client.py:Client",
        "fakes:Walker",
        "--suite",
        "client.py:suite",
        "--episodes",
        "1",
        "--out",
        "duel",
    ]
    assert main([*duel, "--policy-args-a", f"api_key={SECRET}", "--suite-args", f"hf_token={SECRET}"]) in (0, 2)
    insist_on_none_in(folder / "duel")
    printed = capfd.readouterr()
    insist_on_none(printed.out + printed.err)


def test_secrets_that_an_earlier_version_wrote_are_not_shown(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    identity = {**INFO.identity, "policy_args": ["api_key=pl4nted", "gain=2"], "checkpoint": None}
    session = {"command": "vla-bench run --policy-args api_key=pl4nted gain=2 --checkpoint http://a:pl4nted@h/"}
    info = replace(INFO, identity=identity, provenance={**INFO.provenance, **session, "earlier": [session]})
    file = as_before(made_run(folder / "old", {"lift": "10"}, info=info)) / "run.json"
    written = {**json.loads(file.read_bytes()), "identity": identity, "provenance": info.provenance}
    file.write_text(json.dumps(written), encoding="utf-8")
    assert main(["leaderboard", "old", "--json"]) == 0
    assert main(["check", "old", "--baseline", "base.jsonl", "--update"]) == 0
    printed = (folder / "base.jsonl").read_text("utf-8") + "".join(capfd.readouterr())
    insist_on_none(printed + json.dumps(vars(read_info("old"))))
    assert "gain=2" in printed


def test_addresses_lose_their_passwords_before_anything_is_said(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    address = "https://me:pl4nted@host/model?rev=1&access_token=pl4nted2"
    assert main(["run", "--policy", "random", "--suite", "fakes:suite", "--checkpoint", address]) == 64
    said = capfd.readouterr().err
    assert "has no checkpoint, got --checkpoint https://me:***@host/model?rev=1&access_token=***" in said
    config = RunConfig("a", "b", checkpoint=address)
    assert config.identity()["checkpoint"] == "https://me:***@host/model?rev=1&access_token=***"


# The words


@pytest.mark.parametrize(
    "name",
    [
        *("key", "api_key", "apiKey", "API_KEY", "apikey", "hf_token", "tokens", "password", "db.password", "PASSWORD"),
        *(
            "client-secret",
            "credentials",
            "aws_credential",
            "auth",
            "auth_header",
            "server_key",
            "dataset_token",
            "pwd",
        ),
    ],
)
def test_a_name_makes_a_secret(name: str) -> None:
    assert is_secret(name, "value")
    assert redacted([f"{name}=value=1"]) == [f"{name}=***"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("unnorm_key", "libero"), ("image_keys", "a,b"), ("pad_token", "<pad>"), ("max_tokens", "512")),
        *(("tokenizer", "a/b"), ("author", "x"), ("keyboard", "x"), ("auth", "false"), ("authority", "x")),
        *(("token_rate", "1e-3"), ("speed", "secret"), ("monkey", "x"), ("gain", "2")),
    ],
)
def test_what_decides_the_numbers_is_no_secret(name: str, value: str) -> None:
    assert not is_secret(name, value)
    assert redacted([f"{name}={value}"]) == [f"{name}={value}"]


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("api_key=env:NAME", "api_key=env:NAME"),
        ("gain=env:GAIN", "gain=env:GAIN"),
        ("password=12", "password=***"),
        ("api_key=", "api_key="),
        ("--policy-args=api_key=a=b", "--policy-args=api_key=***"),
        ("--api-key=ab", "--api-key=***"),
        ("url=https://u:p@h:8000/x?token=a#key=b&c=d", "url=https://u:***@h:8000/x?token=***#key=***&c=d"),
        ("url=wss://ghp_0123456789abcdefghij@h/x", "url=wss://***@h/x"),
        ("url=ssh://git@host/x", "url=ssh://git@host/x"),
        ("https://h/?X-Amz-Signature=ab&sig=c", "https://h/?X-Amz-Signature=***&sig=***"),
        ("a@b.c", "a@b.c"),
    ],
)
def test_what_is_kept_of_an_argument(word: str, kept: str) -> None:
    assert redacted([word]) == [kept]
    assert redacted([kept]) == [kept]


def test_the_word_behind_a_flag_of_another_script_is_hidden() -> None:
    command = ["--token", "abcd", "--model", "m", "--password", "--key", "x", "--max-tokens", "5"]
    assert redacted(command) == ["--token", "***", "--model", "m", "--password", "--key", "***", "--max-tokens", "5"]
    assert names(["api_key=x", "gain=2", "gain=env:GAIN"]) == ["api_key", "gain"]


def test_remembered_values_are_hidden_however_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_memory", secrets._Memory())
    remember([f"api_key={SECRET}", "token=abc", "password=1234", "u=http://me:passw0rd%21@h/"])
    forms = [SECRET, repr(SECRET), json.dumps(SECRET), " ".join(SECRET.split()), "passw0rd%21", "passw0rd!"]
    for form in forms:
        assert hidden(f"<{form}>") in ("<***>", "<'***'>", '<"***">')
    assert message_of(ValueError(f"no {SECRET}.")) == "no ***"
    assert hidden("abc 1234 tokens") == "abc 1234 tokens"  # too short, and a number
    given = {"a": [SECRET, 1, None, 0.5, True], f"as {SECRET}": "x"}
    assert hidden_in(given) == {"a": ["***", 1, None, 0.5, True], "as ***": "x"}
