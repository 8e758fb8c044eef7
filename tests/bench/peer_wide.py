#!/usr/bin/env python3
"""peer_wide.py MODEL TEXTS LENGTH OUT METHOD THREADS: W4A16 in groups of 128 by llm-compressor 0.14 on the CPU, for bench_peer.py.

METHOD: awq or gptq. TEXTS: a sample a line, cut to LENGTH tokens."""
import os
import sys

os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", CUDA_VISIBLE_DEVICES="")
import torch
import transformers
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier

torch.Tensor.pin_memory = lambda self, *_, **__: self  # 0.14 pins memory even without CUDA
IGNORE = ["lm_head", "re:.*mlp.gate$"]


def main():
    folder, texts, length, out, method, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    rows = [{"input_ids": tokenizer(line, truncation=True, max_length=int(length))["input_ids"]} for line in open(texts).read().splitlines()]
    for row in rows:
        row["attention_mask"] = [1] * len(row["input_ids"])
    kind = GPTQModifier if method == "gptq" else QuantizationModifier
    recipe = [AWQModifier()] if method == "awq" else []
    oneshot(model=model, tokenizer=tokenizer, recipe=[*recipe, kind(targets="Linear", scheme="W4A16", ignore=IGNORE)],
            dataset=Dataset.from_list(rows), num_calibration_samples=len(rows), max_seq_length=int(length), shuffle_calibration_samples=False)
    model.save_pretrained(out, save_compressed=True)
    print("tokens", sum(len(row["input_ids"]) for row in rows))


main()
