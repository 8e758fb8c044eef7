#!/usr/bin/env python3
"""peer_8bit.py --build BUILD --peer PYTHON [--toys NAME...] [--work FOLDER]: FP8 and INT8 weights and scales of slim against those
of llm-compressor 0.14 on the CPU, bit for bit, with plain min-max ranges.

PYTHON has llm-compressor. It computes in the model's dtype on a CPU, so slim is asked for bf16 arithmetic. Scales of static activations
depend on each tool's own bf16 forward pass: of these the largest relative difference is printed."""
import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from accuracy import CALIBRATION, SAMPLES, Toy

PEER = Path(__file__).with_name("peer_llmcompressor.py")
SCHEMES = (("fp8", "fp8_static", 0, "FP8"), ("fp8", "fp8_dynamic", 0, "FP8_DYNAMIC"), ("fp8", "fp8_block", 0, "FP8_BLOCK"),
           ("int8", "w8a8", 0, "W8A8"), ("int8", "w8a8_static", 0, "W8A8_STATIC"), ("int8", "w8a16", 128, "W8A16"))


def tensors(folder):
    merged = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        merged.update(load_file(file))
    return merged


def run(command):
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{result.stderr[-2000:]}")


def compare(ours, theirs):
    """Equal and all quantized tensors; names that one side lacks; largest relative difference of input scales."""
    quantized = {name for name in theirs if name.endswith(("weight_scale", "weight_packed", "weight_zero_point"))}
    quantized |= {name[:-len("_scale")] for name in quantized if name.endswith("weight_scale")} & theirs.keys()
    missing = sorted(quantized - ours.keys())
    equal = sum(name in ours and ours[name].dtype == theirs[name].dtype and ours[name].shape == theirs[name].shape and
                torch.equal(ours[name].view(torch.uint8), theirs[name].view(torch.uint8)) for name in quantized)
    inputs = [name for name in theirs if name.endswith("input_scale") and name in ours]
    differences = [abs(ours[name].float() / theirs[name].float() - 1).max().item() for name in inputs]
    return equal, len(quantized), missing, max(differences, default=None)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--toys", nargs="*", default=list(CALIBRATION))
    parser.add_argument("--work", type=Path)
    arguments = parser.parse_args()
    all_equal = True
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        for name in arguments.toys:
            toy = Toy(name, arguments.build, work)
            for plugin, scheme, group, preset in SCHEMES:
                ours, theirs = work / f"{name}-slim-{scheme}", work / f"{name}-peer-rtn-{preset}"
                run([toy.slim, "--plugin", plugin, "--model", toy.model, "--scheme", scheme, "--calib", toy.calibration, "--output", ours,
                     "--overwrite", "--group-size", group, "--set", f"{plugin}.arithmetic=bf16", "--set", "run.propagate=float", "--quiet"])
                if not theirs.exists():
                    run([arguments.peer, PEER, toy.model, toy.calibration, theirs, "rtn", preset])
                equal, total, missing, inputs = compare(tensors(ours), tensors(theirs))
                note = "" if inputs is None else f", input scales differ by at most {inputs:.2%}"
                note += f", {len(missing)} not in slim's: {missing[:3]}" if missing else ""
                print(f"{name} {scheme}: {equal}/{total} tensors equal{note}", flush=True)
                all_equal = all_equal and equal == total and total > 0
    return 0 if all_equal else 1


if __name__ == "__main__":
    sys.exit(main())
