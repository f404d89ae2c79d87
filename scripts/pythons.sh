#!/bin/sh
# pythons.sh VERSION...: for each of these Pythons (3.10 3.13), install the lock into .venv-VERSION and take scripts/smoke.sh's
# walk. Looks for pythonVERSION on the path and among pyenv's. Run by `make test-pythons`.
set -eu
cd "$(dirname "$0")/.."

find_python() {
    command -v "python$1" || ls "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python 2>/dev/null | tail -n 1
}

for version in "$@"; do
    python=$(find_python "$version")
    if [ -z "$python" ] || ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "pythons: no Python $version here (python$version on the path, or pyenv install $version)" >&2
        exit 1
    fi
    PYTHON="$python" VENV=".venv-$version" SYSTEM=no sh scripts/setup.sh
    VENV=".venv-$version" sh scripts/smoke.sh
done
