#!/usr/bin/env bash
# Runs fuzz targets: run.sh BUILD [SECONDS [TARGET...]], 30 seconds of processor time for each target unless told, JOBS=2 at a time.
# An input that breaks a target stays in BUILD/found, and the exit code is 1; what was reached on the way is in BUILD/corpus/TARGET.
# Always the same inputs in the same order: those kept in corpus/, those of seeds.py, then what grows out of them under SEED=1. A short
# run is thus the beginning of a long one, and a test does not fail by chance; SEED=N searches elsewhere.
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
rm -rf "$build/seeds"
python3 "$here/seeds.py" "$build/seeds"

# Seconds of processor time of a process; nothing once it has ended.
processor_seconds() {
  local stat
  { read -r -a stat <"/proc/$1/stat"; } 2>/dev/null || return 0
  [[ ${stat[2]} == Z ]] || echo $(((stat[13] + stat[14]) / $(getconf CLK_TCK)))
}

# No single allocation of a hostile input may be large, and what slow inputs cost is bounded. Addresses are not randomized: libFuzzer
# takes values that were compared, pointers too, into new inputs. Its timeout is by the clock: on a busy machine an input waits.
start() {
  local fixed=()
  ! setarch -R true 2>/dev/null || fixed=(setarch -R)
  [[ ! -w /dev/shm ]] || export TMPDIR=/dev/shm  # some targets write a file for each input
  OMP_NUM_THREADS=1 exec ${fixed[@]+"${fixed[@]}"} "$build/bin/fuzz_$1" -seed="${SEED:-1}" -reload=0 -timeout=600 -rss_limit_mb=2048 \
    -malloc_limit_mb=512 -max_len=8192 -print_final_stats=1 -artifact_prefix="$build/found/$1-" "${@:2}" >"$build/log/$1" 2>&1
}

fuzz() {
  local target=$1 folders=("$build/corpus/$1" "$build/seeds/$1") program used=0 now
  rm -rf "${folders[0]}"
  mkdir -p "${folders[@]}"
  [[ ! -d $here/corpus/$target ]] || folders+=("$here/corpus/$target")
  start "$target" "${folders[@]}" &
  program=$!
  while now=$(processor_seconds $program) && [[ -n $now ]]; do
    used=$now
    if ((used >= seconds)); then
      kill -USR1 $program 2>/dev/null || true  # ends libFuzzer after the present input
    fi
    sleep 1
  done
  if ! wait $program; then
    echo "fuzz_$target: FAILED after $used s"
    tail -n 60 "$build/log/$target"
    return 1
  fi
  echo "fuzz_$target: clean, $(sed -n 's/^stat::number_of_executed_units: *//p' "$build/log/$target") inputs in $used s of processor time," \
    "at most $(sed -n 's/^stat::peak_rss_mb: *//p' "$build/log/$target") MB"
}
export -f fuzz start processor_seconds
export here build seconds
printf '%s\n' "${targets[@]}" | xargs -P "${JOBS:-2}" -I{} bash -c 'fuzz {}'
