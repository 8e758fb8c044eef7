"""Products of 16-bit numbers as slim computes them on this processor: no further from the fp32 model than transformers' own bf16, and the
same as LibTorch's where the processor multiplies bf16 itself.

    python tests/oracle/test_products.py --build BUILD_DIR"""
import os

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kit import SAMPLES, build_folder, native_logits, unpacked
from text_oracle import expected_logits
from vl_oracle import divergence

TEXTS = 64
NOISE = 1.15  # of a mean over some thousand tokens


def main():
    build = build_folder()
    os.environ["SLIM_PRODUCTS"] = "auto"
    lines = (SAMPLES / "eval_text.txt").read_text().splitlines()[:TEXTS]
    for toy in ("toy-hunyuan-dense", "toy-hunyuan-moe"):
        folder = unpacked(build, toy)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        sequences = [torch.tensor(tokenizer(line)["input_ids"]) for line in lines]
        exact, theirs = ([expected_logits(model, ids) for ids in sequences] for model in (
            AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval() for dtype in (torch.float32, torch.bfloat16)))
        ours = native_logits(build, folder, [{"input_ids": ids} for ids in sequences], "bfloat16")
        distance, of_transformers = (sum(divergence(e, f) for e, f in zip(exact, found)) / TEXTS for found in (ours, theirs))
        print(f"{toy}: KL to the fp32 model {distance:.2e}, transformers' bf16 {of_transformers:.2e}", flush=True)
        assert distance <= NOISE * of_transformers, f"{toy}: {distance:.2e} is further than {of_transformers:.2e}"


main()
