#!/usr/bin/env python3
"""Memory is bounded by the block, not by the model: peak RAM of an AWQ run on a generated checkpoint and on one of twice as many
equal blocks differs by less than a tenth. --full: 32 and 64 blocks of 125 MB (4 and 8 GB; needs 20 GB of disk), at most 1.5 GB."""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MEGABYTE = 1_000_000
SETTINGS = ("awq.grid=1", "awq.refine=0", "awq.rows=16", "awq.clip=diagonal")  # memory does not depend on how long the search is


def peak(build, work, blocks, block_megabytes, dense):
    model, output = f"{work}/model-{blocks}", f"{work}/output-{blocks}"
    subprocess.run([sys.executable, ROOT / "tests/tools/make_checkpoint.py", model, "--blocks", str(blocks), "--bytes",
                    f"{blocks * block_megabytes}MB", "--like", ROOT / "tests/data/toy-qwen3vl"], check=True, stdout=subprocess.DEVNULL)
    command = [build / "bin/slim", "--plugin", "awq", "--model", model, "--calib", ROOT / "tests/data/samples/calib.jsonl",
               "--num-samples", "16", "--output", output, "--json", "--quiet"]
    for setting in () if dense else SETTINGS:
        command += ["--set", setting]
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(result.stderr)
    report = json.loads(result.stdout)
    for folder in (model, output):
        subprocess.run(["rm", "-r", folder], check=True)
    print(f"{blocks} blocks of {block_megabytes} MB: peak {report['peak_rss_bytes'] / MEGABYTE:.0f} MB, {report['seconds']:.0f} s", flush=True)
    return report["peak_rss_bytes"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--default-search", action="store_true", help="AWQ's own settings instead of the shortest search")
    parser.add_argument("--work", help="a folder with room for the checkpoints")
    arguments = parser.parse_args()
    blocks, megabytes = (32, 125) if arguments.full else (6, 32)
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        once = peak(arguments.build.resolve(), work, blocks, megabytes, arguments.default_search)
        twice = peak(arguments.build.resolve(), work, 2 * blocks, megabytes, arguments.default_search)
    assert abs(twice - once) < 0.1 * once, f"twice the blocks changed the peak from {once} to {twice} bytes"
    if arguments.full:
        assert once <= 1500 * MEGABYTE, f"{once} bytes at the peak, allowed 1.5 GB"


main()
