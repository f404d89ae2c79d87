#!/bin/sh
# Build the sdist and from it the wheel into dist/, and see that each works in a clean venv. Run by `make build`.
set -eu

python=${VENV:-.venv}/bin/python
rm -rf build dist ./*.egg-info
"$python" -m build --no-isolation --outdir dist . # with the lock's setuptools

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for package in "$PWD"/dist/*.whl "$PWD"/dist/*.tar.gz; do
    echo "build: trying $package"
    "$python" -m venv --clear "$scratch/venv"
    "$scratch/venv/bin/python" -m pip install -qq "$package"
    (cd "$scratch" && venv/bin/vla-bench list suites && venv/bin/vla-bench list checkpoints | grep shipped:)
done
