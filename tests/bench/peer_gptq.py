#!/usr/bin/env python3
"""peer_gptq.py --build BUILD: share of GPTQ's codes that llm-compressor 0.14 chooses too, at identical scales, without reordering.

To be run by a Python that has llm-compressor. One generated layer and input per line; the scales are slim's min-max scales."""
import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="", LLMCOMPRESSOR_DISABLE_GPTQ_TRITON="1")
import torch
from compressed_tensors.quantization import QuantizationArgs
from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

sys.path.append(str(Path(__file__).resolve().parents[1] / "oracle"))
from test_gptq import PLAIN, layer, solve

CASES = [("w4a16", 128, 512, 1024), ("w4a16", 32, 256, 512), ("w4a16_asym", 128, 256, 512), ("w3a16", 128, 256, 512),
         ("w2a16", 64, 128, 256), ("w8a16", 128, 256, 512), ("w8a8", 0, 256, 512)]


def peer_codes(tensors, scale, zero, scheme, group):
    strategy = dict(strategy="group", group_size=group) if group else dict(strategy="channel")
    args = QuantizationArgs(num_bits=int(scheme[1]), type="int", symmetric=not scheme.endswith("asym"), actorder=None, **strategy)
    hessian = tensors["x"].T @ tensors["x"] / len(tensors["x"])
    decoded, _, fell_back = quantize_weight(tensors["weight"][None].clone(), hessian[None], scale[None], zero[None], None, args)
    assert not fell_back.any()
    columns = torch.arange(scale.shape[1]).repeat_interleave(decoded.shape[2] // scale.shape[1])
    return (decoded[0] / scale[:, columns] + zero[:, columns]).round().to(torch.int8)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True)
    build = parser.parse_args().build
    for seed, (scheme, group, rows, columns) in enumerate(CASES):
        arrays = layer(rows, columns, seed)
        with tempfile.TemporaryDirectory() as folder:
            result = {name: torch.from_numpy(value) for name, value in solve(build, scheme, group, arrays, PLAIN, folder).items()}
        zero = result.get("zero", torch.zeros_like(result["scale"], dtype=torch.int8))
        expected = peer_codes({name: torch.from_numpy(value) for name, value in arrays.items()}, result["scale"], zero, scheme, group)
        print(f"{scheme:12} group {group or 'channel'}, {rows} x {columns}: {(expected == result['codes']).float().mean():.3%} equal")


main()
