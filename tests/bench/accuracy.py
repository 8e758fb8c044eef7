#!/usr/bin/env python3
"""accuracy.py --build BUILD [--peer PYTHON] [--out FOLDER]: quality of slim's results on a trained toy, as a Markdown table.

--peer: a Python that has llm-compressor 0.14; its results on the same samples stand beside ours. All rows are judged by one
judge, `slim eval`, which reads both tools' checkpoints. KL divergence is to the bf16 original."""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "tests/data/samples"
PEER = Path(__file__).with_name("peer_llmcompressor.py")
OURS = (("rtn", "w4a16"), ("awq", "w4a16"), ("rtn", "w4a16_asym"), ("awq", "w4a16_asym"))
THEIRS = (("awq", "W4A16"), ("awq", "W4A16_ASYM"))


def report(command):
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def row(name, scores, seconds, memory):
    exact = scores.get("answers_exact")
    return (f"| {name} | {scores.get('text_kl', 0):.5f} | {scores.get('answers_kl', 0):.5f} | {scores['text_perplexity']:.4f} | "
            f"{'' if exact is None else format(exact, '.1%')} | {seconds} | {memory} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=ROOT / "tests/data/toy-qwen3vl")
    parser.add_argument("--peer")
    arguments = parser.parse_args()
    slim = arguments.build / "bin/slim"
    judge = lambda folder: report([slim, "eval", folder, "--reference", arguments.model, "--data", SAMPLES, "--json", "--quiet"])
    print("| method | KL, text | KL, answers | perplexity | answers right | seconds | peak memory |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as work:
        for number, (plugin, scheme) in enumerate(OURS):
            folder = f"{work}/{plugin}-{scheme}"
            run = report([slim, "--plugin", plugin, "--model", arguments.model, "--calib", SAMPLES / "calib.jsonl",
                          "--scheme", scheme, "--output", folder, "--json", "--quiet"])
            scores = judge(folder)
            if number == 0:
                print(row("bf16", scores["reference"], "", ""))
            print(row(f"slim {plugin} {scheme}", scores, f"{run['seconds']:.1f}", f"{run['peak_rss_bytes'] / 2**20:.0f} MiB"), flush=True)
        for method, scheme in THEIRS if arguments.peer else ():
            folder = f"{work}/peer-{method}-{scheme}"
            run = report([arguments.peer, PEER, arguments.model, SAMPLES / "calib.jsonl", folder, method, scheme])
            print(row(f"llm-compressor {method} {scheme}", judge(folder), f"{run['seconds']:.1f}", f"{run['peak_rss_mib']} MiB"), flush=True)


main()
