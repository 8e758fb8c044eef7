#!/usr/bin/env bash
# setup_vllm.sh [VENV]: vLLM's CPU build for the client tests, into .venv-vllm unless another folder is named (about 6 GB).
# The wheel pins a torch build that cannot be resolved together with it, so exact versions are installed as they are.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=${1:-$here/../../.venv-vllm}
[[ -x $venv/bin/python ]] || python3 -m venv "$venv"
"$venv/bin/pip" install -q --no-compile --no-deps -r "$here/vllm-requirements.txt"
"$venv/bin/python" -c "import vllm; print('vllm', vllm.__version__)"
