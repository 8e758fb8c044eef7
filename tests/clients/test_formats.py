#!/usr/bin/env python3
"""transformers, vLLM and GPTQModel (those that are installed) load what slim writes in each format, and score text as slim's own
dequantized forward pass does. The whole table is made by matrix.py."""
import argparse
import sys
from pathlib import Path

from matrix import CLIENTS, ROWS, python_of, try_rows

# Every storage that the client knows: packed, int8, FP8, with zero points, by blocks, mixed.
LOADED = {"transformers": ("compressed-tensors w4a16", "compressed-tensors w4a16_asym", "compressed-tensors w3a16_asym", "compressed-tensors w8a8_static",
                           "compressed-tensors fp8_block", "compressed-tensors fp8_static", "compressed-tensors w4a16 down_proj in fp8_dynamic"),
          "vllm": ("compressed-tensors w4a16_asym", "compressed-tensors w4a16 down_proj in fp8_dynamic", "awq w4a16_asym", "gptq w4a16", "gptq_v2 w4a16"),
          "gptqmodel": ("awq w4a16_asym", "gptq w4a16", "gptq w3a16", "gptq_v2 w4a16_asym")}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=Path, required=True)
    build = parser.parse_args().build.resolve()
    failures, tried = [], 0
    for client in CLIENTS:
        rows = [row for row in ROWS if row.label in LOADED[client] and python_of(client, row)]
        verdicts, failed = try_rows(build, rows, [client])
        tried += len(verdicts)
        failures += [f"{rows[index].label}: {reason}" for index, reason in failed.items()]
        failures += [f"{client}, {rows[index].label}: {verdict.reason}" for (index, _), verdict in verdicts.items() if not verdict.good]
    print(f"{tried} checkpoints loaded, {len(failures)} failures")
    sys.exit("\n".join(failures) if failures else 0 if tried else 77)


main()
