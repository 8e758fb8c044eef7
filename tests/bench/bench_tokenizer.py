"""Load and encode times of the native tokenizer over those of the tokenizers library: the best of several runs, in turns.

usage: python tests/bench/bench_tokenizer.py --build BUILD_DIR [--tokenizer tokenizer.json] [--runs N]
"""
import argparse
import json
import lzma
import os
import subprocess
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
import tokenizers  # noqa: E402

DATA = Path(__file__).resolve().parents[1] / "data"


def library(path, text):
    start = time.perf_counter()
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    loaded = time.perf_counter()
    ids = tokenizer.encode(text).ids
    return {"load": loaded - start, "encode": time.perf_counter() - loaded, "tokens": len(ids)}


parser = argparse.ArgumentParser()
parser.add_argument("--build", type=Path, required=True)
parser.add_argument("--tokenizer", type=Path)
parser.add_argument("--runs", type=int, default=7)
args = parser.parse_args()
if args.tokenizer is None:
    args.tokenizer = args.build / "qwen3-tokenizer.json"
    args.tokenizer.write_bytes(lzma.decompress((DATA / "tokenizers" / "qwen3" / "tokenizer.json.xz").read_bytes()))
text = "".join(p.read_text() for p in sorted((DATA / "chat_templates").glob("*.*"))) * 20 + "\u4f60\u597d\uff0ccaf\u00e9 \ud55c\uad6d " * 20000
text_path = args.build / "bench_tokenizer.txt"
text_path.write_text(text)
command = [args.build / "bin" / "slim_tokenize", "--time", args.tokenizer, text_path]
runs = [(json.loads(subprocess.run(command, capture_output=True, check=True).stdout), library(args.tokenizer, text)) for _ in range(args.runs)]
assert all(a["tokens"] == b["tokens"] for a, b in runs)
for what in ("load", "encode"):
    ours, theirs = (min(run[side][what] for run in runs) for side in (0, 1))
    print(f"{what}: slim {ours:.3f} s, tokenizers {theirs:.3f} s, ratio {ours / theirs:.2f}")
print(f"{runs[0][0]['tokens']} tokens of {len(text.encode())} bytes")
