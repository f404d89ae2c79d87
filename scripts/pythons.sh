#!/bin/sh
# pythons.sh VERSION...: for each of these Pythons (3.10 3.13), install the lock into .venv-VERSION and take scripts/smoke.sh's
# walk. Looks for pythonVERSION on the path and among pyenv's. Run by `make test-pythons`.
set -eu
cd "$(dirname "$0")/.."

find_python() { # the first that works: a pyenv shim stands on the path for versions that are not chosen, too
    for python in "$(command -v "python$1" || true)" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
        ! "$python" -c 'import ensurepip, venv' 2>/dev/null || { echo "$python" && return; }
    done
}

for version in "$@"; do
    python=$(find_python "$version")
    [ -n "$python" ] || { echo "pythons: no Python $version here (pyenv install $version)" >&2 && exit 1; }
    PYTHON="$python" VENV=".venv-$version" sh scripts/setup.sh
    VENV=".venv-$version" sh scripts/smoke.sh
done
