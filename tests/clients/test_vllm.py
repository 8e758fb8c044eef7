#!/usr/bin/env python3
"""vLLM's CPU build loads the toy's W4A16 result and answers as slim's own forward pass does. Needs the environment that
tests/clients/setup_vllm.sh makes (.venv-vllm, or SLIM_VLLM_PYTHON); without it the test is skipped."""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "tests/data/samples"
QUESTIONS = 48
# Kernels of two engines round differently in bf16; a question whose first two candidates are nearly equal may then tip over.
LEAST_EQUAL = 0.93


def json_of(command):
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert result.returncode == 0, f"{command}: {result.stderr[-3000:]}"
    return json.loads(result.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=Path, required=True)
    slim = parser.parse_args().build.resolve() / "bin/slim"
    python = Path(os.environ.get("SLIM_VLLM_PYTHON", ROOT / ".venv-vllm/bin/python"))
    if not python.exists():
        print(f"skipped: no vLLM at {python}; run tests/clients/setup_vllm.sh")
        sys.exit(77)
    for scheme in ("w4a16", "w4a16_asym"):
        with tempfile.TemporaryDirectory() as work:
            json_of([slim, "--plugin", "awq", "--model", ROOT / "tests/data/toy-qwen3vl", "--calib", SAMPLES / "calib.jsonl", "--scheme",
                     scheme, "--output", f"{work}/out", "--json", "--quiet"])
            scores = json_of([slim, "eval", f"{work}/out", "--data", SAMPLES / "eval.jsonl", "--limit", QUESTIONS, "--json", "--quiet"])
            ours = scores["files"]["eval.jsonl"]["answers"]
            theirs = json_of([python, ROOT / "tests/clients/vllm_answers.py", f"{work}/out", SAMPLES / "eval.jsonl", QUESTIONS])
        equal = sum(a == b for a, b in zip(ours, theirs, strict=True)) / QUESTIONS
        print(f"{scheme}: {equal:.1%} of {QUESTIONS} answers equal")
        assert equal >= LEAST_EQUAL, [(a, b) for a, b in zip(ours, theirs) if a != b]


main()
