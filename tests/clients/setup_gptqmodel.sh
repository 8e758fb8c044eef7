#!/usr/bin/env bash
# setup_gptqmodel.sh [VENV]: GPTQModel, and transformers with it, for the client tests, into .venv-gptqmodel unless another folder is
# named (about 6 GB). GPTQModel is built here, without its GPU kernels; that needs the versions of torch and setuptools below.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=${1:-$here/../../.venv-gptqmodel}
[[ -x $venv/bin/python ]] || python3 -m venv "$venv"
"$venv/bin/pip" install -q -U pip setuptools wheel ninja packaging
"$venv/bin/pip" install -q torch==2.15.0 torchvision==0.29.2 numpy
BUILD_CUDA_EXT=0 MAX_JOBS=1 "$venv/bin/pip" install -q --no-build-isolation gptqmodel==7.7.0 optimum
"$venv/bin/python" -c "import gptqmodel; print('gptqmodel', gptqmodel.__version__)"
