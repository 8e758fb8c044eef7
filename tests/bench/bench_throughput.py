"""Throughput of data-free runs over that of `cp` of the same bytes: in turns, in one run, from the page cache.

usage: python tests/bench/bench_throughput.py --build BUILD_DIR [--bytes 4GB] [--folder DIR] [--runs N] [--json]

Makes a checkpoint of random bf16 weights below DIR (default: /dev/shm, where no disk is measured) and removes it. Compares
whole processes: reading, rounding, packing and writing against reading and writing.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def seconds(command, output):
    shutil.rmtree(output, ignore_errors=True)
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"})
    elapsed = time.perf_counter() - start
    if done.returncode:
        sys.exit(done.stderr)
    shutil.rmtree(output)
    return elapsed


parser = argparse.ArgumentParser()
parser.add_argument("--build", type=Path, required=True)
parser.add_argument("--bytes", default="4GB")
parser.add_argument("--blocks", default="16")
parser.add_argument("--folder", default="/dev/shm")
parser.add_argument("--runs", type=int, default=3)
parser.add_argument("--model", help="an existing checkpoint instead")
parser.add_argument("--json", action="store_true")
arguments = parser.parse_args()

with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
    model, output = arguments.model or f"{folder}/model", f"{folder}/output"
    if not arguments.model:
        make = [sys.executable, TESTS / "tools/make_checkpoint.py", model, "--like", TESTS / "data/toy-qwen3vl"]
        subprocess.run([*make, "--blocks", arguments.blocks, "--bytes", arguments.bytes], check=True, stdout=subprocess.DEVNULL)
    size = sum(path.stat().st_size for path in Path(model).glob("*.safetensors"))
    quantize = [arguments.build / "bin/slim", "--plugin", "rtn", "--model", model, "--output", output, "--quiet"]
    commands = {"cp": ["cp", "-r", model, output]}
    for scheme in ("fp8_dynamic", "w4a16", "w8a16"):
        commands[scheme] = [*quantize, "--scheme", scheme]
    times = {name: [] for name in commands}
    for _ in range(arguments.runs):
        for name, command in commands.items():
            times[name].append(seconds(command, output))
    best = {name: min(values) for name, values in times.items()}
    results = {name: {"seconds": value, "bytes_per_second": size / value, "of_cp": best["cp"] / value} for name, value in best.items()}
    if arguments.json:
        print(json.dumps({"bytes": size, "cpus": os.cpu_count(), "results": results}, indent=2))
    else:
        print(f"{size / 1e9:.2f} GB, {os.cpu_count()} CPUs, best of {arguments.runs}")
        for name, result in results.items():
            print(f"{name:12} {result['seconds']:7.2f} s {result['bytes_per_second'] / 1e9:6.2f} GB/s {result['of_cp']:6.2f} of cp")
