#!/bin/sh
# Make $VENV with vla-bench, its simulators and its tools, and see that this machine can render. Run by `make setup`.
set -eu

python=${PYTHON:-python3}
venv=${VENV:-.venv}

stop() {
    printf '\nsetup: %s\n' "$*" >&2
    exit 1
}

command -v "$python" >/dev/null ||
    stop "no $python here. Install Python 3.10 to 3.13 or name one: make PYTHON=/path/to/python3 (Debian: apt-get install python3 python3-venv)"
"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' ||
    stop "$python is $("$python" --version 2>&1), but vla-bench needs Python 3.10 to 3.13. Name one: make PYTHON=/path/to/python3"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    stop "$python cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv"

"$python" -m venv "$venv"
"$venv/bin/python" -m pip install -qq --upgrade pip setuptools

# Without an NVIDIA driver the CPU build of torch is enough, and gigabytes smaller; it has an index of its own, which a
# machine that only reaches a mirror of PyPI does without.
if ! "$venv/bin/python" -m pip show -qq torch 2>/dev/null; then
    torch='torch==2.13.0'
    if [ -e /proc/driver/nvidia/version ]; then
        "$venv/bin/python" -m pip install -qq "$torch"
    else
        "$venv/bin/python" -m pip install -qq --retries 0 --timeout 10 \
            --index-url https://download.pytorch.org/whl/cpu "$torch" 2>/dev/null ||
            "$venv/bin/python" -m pip install -qq "$torch"
    fi
fi
"$venv/bin/python" -m pip install -qq --editable '.[libero,robosuite,vla,dev]'

gl() {
    "$venv/bin/python" -c 'from vla_bench.gl import main; main()' "$@"
}

gl && exit 0
install=$(gl packages)
[ -n "$install" ] || stop "rendering does not work, see above; $venv/bin/vla-bench doctor says more."
[ "$(id -u)" -eq 0 ] || stop "system packages are missing. Type: $install    and then make again."
echo "setup: $install"
DEBIAN_FRONTEND=noninteractive sh -c "$install" || stop "this failed: $install"
gl || stop "rendering does not work, see above; $venv/bin/vla-bench doctor says more."
