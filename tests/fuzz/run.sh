#!/usr/bin/env bash
# Runs fuzz targets: run.sh BUILD [SECONDS [TARGET...]], 30 seconds for each target unless told, JOBS=2 at a time. What was found on the
# way stays in BUILD/corpus/TARGET; an input that breaks one in BUILD/found, and the exit code is 1. Inputs kept in corpus/ run first.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
build=$(cd "${1:?run.sh BUILD [SECONDS [TARGET...]]}" && pwd)
seconds=${2:-30}
shift $(($# < 2 ? $# : 2))
targets=("$@")
if ((${#targets[@]} == 0)); then
  for program in "$build"/bin/fuzz_*; do targets+=("${program##*/fuzz_}"); done
fi
mkdir -p "$build"/{corpus,found,log}
python3 "$here/seeds.py" "$build/seeds"

fuzz() {
  local target=$1 kept=()
  mkdir -p "$build/corpus/$target" "$build/seeds/$target"
  [[ ! -d $here/corpus/$target ]] || kept=("$here/corpus/$target")
  # No single allocation of a hostile input may be large; what slow inputs cost is bounded too.
  if ! OMP_NUM_THREADS=1 "$build/bin/fuzz_$target" -max_total_time="$seconds" -timeout=60 -rss_limit_mb=4096 -malloc_limit_mb=512 \
    -max_len=8192 -print_final_stats=1 -artifact_prefix="$build/found/$target-" \
    "$build/corpus/$target" "$build/seeds/$target" ${kept[@]+"${kept[@]}"} >"$build/log/$target" 2>&1; then
    echo "fuzz_$target: FAILED"
    tail -n 60 "$build/log/$target"
    return 1
  fi
  echo "fuzz_$target: clean, $(sed -n 's/^stat::number_of_executed_units: *//p' "$build/log/$target") inputs"
}
export -f fuzz
export here build seconds
printf '%s\n' "${targets[@]}" | xargs -P "${JOBS:-2}" -I{} bash -c 'fuzz {}'
