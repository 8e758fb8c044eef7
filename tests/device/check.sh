#!/usr/bin/env bash
# Everything that needs a device, in at most eight minutes on a machine with one GPU and 16 cores: builds, compares the kernels with the
# reference, runs the toys as on the CPU, and times one block of Qwen3-VL-8B's shapes. One command in a working tree:
#
#     tests/device/check.sh [OUT]       # OUT/check.json, OUT/*.log; default: build-device/out
#
# SLIM_TORCH: a LibTorch with CUDA; without it the one that python3 imports. SLIM_DEVICE_BACKEND=cpu tries the script where no device is,
# SLIM_DEVICE_SAMPLES=2x64 makes the timed block short.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=$(mkdir -p "${1:-build-device/out}" && cd "${1:-build-device/out}" && pwd)
backend=${SLIM_DEVICE_BACKEND:-cuda}
build=${SLIM_DEVICE_BUILD:-build-device}

if [[ -z ${SLIM_TORCH:-} ]]; then
  for python in python3 .venv/bin/python; do
    SLIM_TORCH=$("$python" -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])' 2>/dev/null) && break
  done
fi
[[ -e ${SLIM_TORCH:-}/lib/libtorch_cpu.so ]] || { echo "no LibTorch found: set SLIM_TORCH=/path/to/torch" >&2; exit 1; }

targets=(slim slim_plugins)
[[ $backend == cuda ]] && targets+=(test_cuda_backend)
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DSLIM_TORCH="$SLIM_TORCH" >"$out/configure.log" 2>&1 ||
  { tail -20 "$out/configure.log" >&2; exit 1; }
cmake --build "$build" -j "$(nproc)" --target "${targets[@]}" >"$out/build.log" 2>&1 || { tail -40 "$out/build.log" >&2; exit 1; }

exec python3 tests/device/check.py --build "$build" --backend "$backend" --out "$out" --block "${SLIM_DEVICE_SAMPLES:-512x2048}"
