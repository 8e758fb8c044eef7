#!/usr/bin/env bash
# Installs what the tests need, builds slim with its tests and runs them. Arguments go to ctest: ./test.sh -L unit -R gptq
# SLIM_FUZZ_SECONDS=30 also builds all of it with sanitizers (clang, in build-fuzz/), and runs the unit tests and each fuzz target for so long.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source sdk/setup.sh

install_packages "${slim_packages[@]}" doctest-dev doxygen
install_libtorch
install_arrow
pip_install tests/requirements.txt
build all
for model in toy-qwen25vl toy-hunyuan-dense toy-hunyuan-moe; do
  python3 tests/tools/packed_model.py unpack "tests/data/$model" "build/models/$model"
done

say "Testing"
ctest --test-dir build --output-on-failure -j "$(build_jobs)" "$@"

if [[ ${SLIM_FUZZ_SECONDS:-0} != 0 ]]; then
  install_packages clang libclang-rt-dev zlib1g-dev
  say "Building with sanitizers into build-fuzz/"
  cmake --preset fuzz -DSLIM_TORCH="$SLIM_TORCH" >build/configure-fuzz.log 2>&1 || { cat build/configure-fuzz.log >&2; die "configuring failed"; }
  cmake --build --preset fuzz -j "$(build_jobs)"
  say "Testing with sanitizers"
  ctest --preset fuzz -j "$(build_jobs)"
  say "Fuzzing, $SLIM_FUZZ_SECONDS s for each target"
  JOBS=$(build_jobs) tests/fuzz/run.sh build-fuzz "$SLIM_FUZZ_SECONDS"
fi
