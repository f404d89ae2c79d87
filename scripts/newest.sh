#!/bin/sh
# Install the newest release of every dependency that pyproject.toml allows into .venv-newest, say which of them the lock does
# not have yet, and run the tests of what leans on them. Run by `make test-newest`: red means that a range in pyproject.toml
# promises too much, green that `make lock` may follow.
set -eu
cd "$(dirname "$0")/.."

venv=.venv-newest
"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install -qq --require-hashes -r requirements/installer.txt
. scripts/uv.sh
"$venv/bin/uv" pip install --quiet --upgrade --python "$venv/bin/python" --editable '.[libero,robosuite,vla,data,dev]'

echo "newest: not in the lock yet (nothing where the list is empty):"
"$venv/bin/uv" pip freeze --python "$venv/bin/python" 2>/dev/null | sed 's/+.*//' | sort >"$venv/newest"
sed -n 's/^\([a-z0-9-]*==[^ ]*\).*/\1/p' requirements/lock.txt requirements/torch.txt requirements/installer.txt |
    sort | comm -23 "$venv/newest" - | grep -v -E '^(nvidia|cuda|triton|pip=|-e)' || true

VENV=$venv sh scripts/smoke.sh
"$venv/bin/pytest" -n 2 --dist loadscope -m "not slow and not sim" \
    tests/test_openvla.py tests/test_pi0_model.py tests/test_reconvla_model.py tests/test_diffusion_policy_model.py \
    tests/test_checkpoints.py tests/test_store.py tests/test_tables.py tests/test_plots.py
