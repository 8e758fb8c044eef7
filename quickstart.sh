#!/usr/bin/env bash
# Installs what slim needs, builds it, quantizes a small vision-language model to 4 bits and compares the result with the
# original. Needs a network the first time; a second run repeats only what is needed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source sdk/setup.sh

model=tests/data/toy-qwen3vl
samples=tests/data/samples
out=build/quickstart
result=$out/toy-qwen3vl-w4a16
slim=build/bin/slim

quantize=("$slim" --plugin awq --adapter qwen3vl --model "$model" --calib "$samples/calib.jsonl" --scheme w4a16
  --output "$result" --overwrite --json)
evaluate=("$slim" eval "$result" --reference "$model" --data "$samples" --json)

# The programs, the model, the data and this script: when one of them changes, the job is done again.
inputs_hash() {
  find "$slim" build/lib "$model" "$samples" quickstart.sh -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum |
    sha256sum | cut -c1-16
}

# step NAME COMMAND...: keeps the command's JSON in NAME.json.
step() {
  local name=$1
  shift
  say "$*"
  "$@" >"$out/$name.json.part" || die "'$*' failed with exit code $?"
  mv "$out/$name.json.part" "$out/$name.json"
}

print_table() {
  python3 - "$out" <<'PYTHON'
import json
import sys

quantize, result = (json.load(open(f"{sys.argv[1]}/{name}.json")) for name in ("quantize", "evaluate"))
original = result["reference"]
ROWS = (("bytes on disk", "bytes_on_disk", ",d"), ("bits per weight", "bits_per_weight", ".2f"), ("perplexity", "text_perplexity", ".3f"),
        ("answer accuracy", "answers_exact", ".1%"), ("KL divergence, text", "text_kl", ".4f"),
        ("KL divergence, answers", "answers_kl", ".4f"))


def cell(report, key, form):
    value = report.get(key)
    return "-" if value is None else format(int(value) if form == ",d" else value, form)


print(f"{'':24}{'original':>14}{'quantized':>14}")
for title, key, form in ROWS:
    print(f"{title:24}{cell(original, key, form):>14}{cell(result, key, form):>14}")
print(f"{'seconds to quantize':24}{'':14}{quantize['seconds']:>14.1f}")
print(f"{'peak memory':24}{'':14}{quantize['peak_rss_bytes'] / 2**20:>10.0f} MiB")
PYTHON
}

install_packages "${slim_packages[@]}"
install_libtorch
install_arrow
build slim slim_plugins

mkdir -p "$out"
hash=$(inputs_hash)
if [[ -d $result && $(cat "$out/done" 2>/dev/null) == "$hash" ]]; then
  say "$result is up to date"
else
  rm -f "$out/done"
  step quantize "${quantize[@]}"
  step evaluate "${evaluate[@]}"
  echo "$hash" >"$out/done"
fi

say "$model, 16 bits, and $result, 4 bits"
print_table
cat <<EOF

The result is a Hugging Face folder in the compressed-tensors format. To serve it (vLLM on a CUDA machine):
  vllm serve $result
EOF
