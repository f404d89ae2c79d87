#!/bin/sh
# Write requirements/lock.txt anew: the newest release of everything that pyproject.toml allows, for Python 3.10 to 3.13 at
# once, each file with its hashes. Run by `make lock`; commit what it writes together with a green `make test`.
#
# torch is not in it: its builds for CPU and CUDA come from different indexes and have different hashes, so scripts/setup.sh
# installs it by version alone (requirements/torch.txt). NVIDIA's libraries are pinned by torch itself and come with it.
set -eu
cd "$(dirname "$0")/.."

venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install -qq --require-hashes -r requirements/installer.txt
. scripts/uv.sh
unset UV_FIND_LINKS # the lock is of what everybody can get

skip=''
for package in torch triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cccl nvidia-cuda-crt \
    nvidia-cuda-cupti nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand \
    nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 \
    nvidia-nvtx nvidia-nvvm; do
    skip="$skip --no-emit-package $package"
done

# shellcheck disable=SC2086  # one word per package
"$venv/bin/uv" pip compile pyproject.toml requirements/build.in --universal --python-version 3.10 \
    --extra libero --extra robosuite --extra vla --extra data --extra dev --constraint requirements/torch.txt \
    $skip --generate-hashes --no-annotate --quiet --upgrade \
    --custom-compile-command "make lock" --output-file requirements/lock.txt
echo uv | "$venv/bin/uv" pip compile - --universal --python-version 3.10 --generate-hashes --no-annotate --quiet --upgrade \
    --custom-compile-command "make lock" --output-file requirements/installer.txt
