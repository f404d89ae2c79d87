#!/bin/sh
# Make $VENV with vla-bench, its simulators and its tools, in the exact versions of requirements/lock.txt, and see that this
# machine can render. Run by `make setup`.
set -eu
cd "$(dirname "$0")/.."

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
pip="$venv/bin/python -m pip"

# uv installs the lock in a tenth of pip's time; where it does not get through, pip installs the same files: the lock holds
# their hashes.
$pip install -qq --require-hashes -r requirements/installer.txt
. scripts/uv.sh
# Bytecode is made now: a virtual environment that root set up for others can be written to by nobody later.
install() {
    "$venv/bin/uv" pip install --quiet --compile-bytecode --python "$venv/bin/python" "$@" || {
        echo "setup: uv did not get through, see above; pip installs the same, which takes longer"
        $pip install -qq "$@"
    }
}
install --no-deps --require-hashes --requirement requirements/lock.txt

# Without an NVIDIA driver the CPU build of torch is enough, and gigabytes smaller; it has an index of its own, which a
# machine that only reaches a mirror of PyPI does without. Its dependencies are in the lock, NVIDIA's are pinned by torch.
torch=$(cat requirements/torch.txt)
cpu_index=https://download.pytorch.org/whl/cpu
here=$("$venv/bin/python" -c 'from importlib.metadata import version; print(version("torch").split("+")[0])' 2>/dev/null || true)
if [ "torch==$here" != "$torch" ]; then
    { [ ! -e /proc/driver/nvidia/version ] &&
        $pip install -qq --retries 0 --timeout 10 --index-url "$cpu_index" "$torch" 2>/dev/null; } || install "$torch"
fi
$pip install -qq --no-deps --no-build-isolation --editable .

gl() {
    "$venv/bin/python" -c 'from vla_bench.rendering.gl import main; main()' "$@"
}

gl && exit 0
install=$(gl packages)
[ -n "$install" ] || stop "rendering does not work, see above; $venv/bin/vla-bench doctor says more."
[ "$(id -u)" -eq 0 ] || stop "system packages are missing. Type: $install    and then make again."
echo "setup: $install"
DEBIAN_FRONTEND=noninteractive sh -c "$install" || stop "this failed: $install"
gl || stop "rendering does not work, see above; $venv/bin/vla-bench doctor says more."
