#!/usr/bin/env python3
"""AWQ of the trained toy keeps far less than half of the KL divergence that rounding to the same bits costs."""
import sys
import tempfile
from pathlib import Path

from kit import DATA, SAMPLES, build_folder
from toy_oracle import slim

TOY = DATA / "toy-qwen3vl"
LARGEST_SHARE = 0.33  # of rounding's KL that AWQ may keep


def check(build, work):
    kl = {}
    for plugin in ("rtn", "awq"):
        report = slim(build, "--plugin", plugin, "--adapter", "qwen3vl", "--model", TOY, "--calib", SAMPLES / "calib.jsonl",
                      "--scheme", "w4a16", "--output", work / plugin)
        scores = slim(build, "eval", work / plugin, "--reference", TOY, "--data", SAMPLES, "--no-generate")
        kl[plugin] = (scores["text_kl"], scores["answers_kl"])
        print(f"{plugin}: text KL {kl[plugin][0]:.5f}, answers KL {kl[plugin][1]:.5f}, {report['bits_per_weight']:.3f} bits")
    return all(awq < LARGEST_SHARE * rtn for awq, rtn in zip(kl["awq"], kl["rtn"]))


def main():
    build = build_folder()
    with tempfile.TemporaryDirectory() as name:
        return 0 if check(build, Path(name)) else 1


if __name__ == "__main__":
    sys.exit(main())
