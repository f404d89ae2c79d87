#!/bin/sh
# Install what tests compare with and `make setup` does not bring: a Chromium for the report's page (on Debian, as root),
# and lerobot in $VENV-lerobot, a venv of its own over $VENV because its other requirements contradict ours.
set -eu

venv=${VENV:-.venv}

has_browser() {
    command -v chromium || command -v chromium-browser || command -v google-chrome
}

if has_browser >/dev/null; then
    :
elif command -v apt-get >/dev/null && [ "$(id -u)" -eq 0 ]; then
    echo "setup_tests: apt-get install chromium"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium >/dev/null
else
    echo "setup_tests: no Chromium here: tests that look at a report's page are skipped (Debian: apt-get install chromium)"
fi

"$venv/bin/python" -m venv "$venv-lerobot"
lerobot="$venv-lerobot/bin/python"
"$venv/bin/python" -c 'import sys; print(*(path for path in sys.path if path.endswith("site-packages")), sep="\n")' \
    >"$("$lerobot" -c 'import site; print(site.getsitepackages()[0])')/of_vla_bench.pth"
"$lerobot" -m pip install -qq --no-deps --requirement scripts/lerobot.txt
