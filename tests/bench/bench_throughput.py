"""Throughput of data-free runs over that of `cp` of the same bytes: in turns, in one run, from the page cache.

usage: python tests/bench/bench_throughput.py --build BUILD_DIR [--bytes 4GB] [--folder DIR] [--schemes A,B] [--runs N] [--sync] [--json]

Makes a checkpoint of random bf16 weights below DIR (default: /dev/shm, where no disk is measured) and removes it. Compares
whole processes: reading, rounding, packing and writing against reading and writing. `cp` returns before the disk has its bytes, a run
does not: on a disk, --sync has `cp` followed by `sync` of what it wrote.
"""
import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
SCHEMES = "fp8_dynamic,fp8_block,w4a16,w8a8"


def used_processor():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def timed(command, output):
    """Wall and processor time."""
    shutil.rmtree(output, ignore_errors=True)
    before, start = used_processor(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"})
    times = time.perf_counter() - start, used_processor() - before
    if done.returncode:
        sys.exit(done.stderr)
    shutil.rmtree(output)
    return times


parser = argparse.ArgumentParser()
parser.add_argument("--build", type=Path, required=True)
parser.add_argument("--bytes", default="4GB")
parser.add_argument("--blocks", default="16")
parser.add_argument("--folder", default="/dev/shm")
parser.add_argument("--schemes", default=SCHEMES)
parser.add_argument("--runs", type=int, default=3)
parser.add_argument("--model", help="an existing checkpoint instead")
parser.add_argument("--sync", action="store_true")
parser.add_argument("--json", action="store_true")
arguments = parser.parse_args()

with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
    model, output = arguments.model or f"{folder}/model", f"{folder}/output"
    if not arguments.model:
        make = [sys.executable, TESTS / "tools/make_checkpoint.py", model, "--like", TESTS / "data/toy-qwen3vl"]
        subprocess.run([*make, "--blocks", arguments.blocks, "--bytes", arguments.bytes], check=True, stdout=subprocess.DEVNULL)
    size = sum(path.stat().st_size for path in Path(model).glob("*.safetensors"))
    quantize = [arguments.build / "bin/slim", "--plugin", "rtn", "--model", model, "--output", output, "--quiet"]
    copy = ["sh", "-c", 'cp -r "$0" "$1" && sync "$1"/*', model, output] if arguments.sync else ["cp", "-r", model, output]
    commands = {"cp": copy}
    for scheme in arguments.schemes.split(","):
        commands[scheme] = [*quantize, "--scheme", scheme]
    times = {name: [] for name in commands}
    for _ in range(arguments.runs):
        for name, command in commands.items():
            times[name].append(timed(command, output))
    medians = {name: [statistics.median(column) for column in zip(*values)] for name, values in times.items()}
    results = {name: {"seconds": wall, "processor_seconds": processor, "bytes_per_second": size / wall, "of_cp": medians["cp"][0] / wall}
               for name, (wall, processor) in medians.items()}
    if arguments.json:
        print(json.dumps({"bytes": size, "cpus": os.cpu_count(), "runs": arguments.runs, "results": results}, indent=2))
    else:
        print(f"{size / 1e9:.2f} GB, {os.cpu_count()} CPUs, medians of {arguments.runs} runs in turns")
        for name, result in results.items():
            print(f"{name:12} {result['seconds']:7.2f} s, of processors {result['processor_seconds']:6.2f} s, "
                  f"{result['bytes_per_second'] / 1e9:6.2f} GB/s {result['of_cp']:6.2f} of cp")
