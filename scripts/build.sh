#!/bin/sh
# Build the sdist and from it the wheel into dist/, and see that each works in a clean venv. Run by `make build`.
set -eu

python=${VENV:-.venv}/bin/python
"$python" -m pip install -qq build
rm -rf build dist ./*.egg-info
"$python" -m build --outdir dist .

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for package in "$PWD"/dist/*.whl "$PWD"/dist/*.tar.gz; do
    echo "build: trying $package"
    "$python" -m venv --clear "$scratch/venv"
    "$scratch/venv/bin/python" -m pip install -qq "$package"
    (cd "$scratch" && venv/bin/vla-bench list suites && venv/bin/vla-bench list checkpoints | grep shipped:)
done
