#!/usr/bin/env bash
# Installs what the tests need, builds slim with its tests and runs them. Arguments go to ctest: ./test.sh -L unit -R gptq
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source sdk/setup.sh

install_packages "${slim_packages[@]}" doctest-dev doxygen
install_libtorch
install_arrow
pip_install tests/requirements.txt
build all
for model in toy-hunyuan-dense toy-hunyuan-moe; do
  python3 tests/tools/packed_model.py unpack "tests/data/$model" "build/models/$model"
done

say "Testing"
ctest --test-dir build --output-on-failure -j "$(build_jobs)" "$@"
