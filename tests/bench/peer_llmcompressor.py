#!/usr/bin/env python3
"""peer_llmcompressor.py MODEL CALIB OUT METHOD SCHEME: the same job by llm-compressor 0.14 on the CPU, for comparison.

METHOD: awq or rtn. SCHEME: a preset of compressed-tensors (W4A16, W4A16_ASYM). Prints one JSON line: seconds, peak memory."""
import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", CUDA_VISIBLE_DEVICES="")
import torch
import transformers
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from PIL import Image

IGNORE = ["re:.*lm_head", "re:.*visual.*"]
TENSORS = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw")
torch.Tensor.pin_memory = lambda self, *_, **__: self  # 0.14 pins memory even without CUDA


def samples(processor, calib):
    for line in calib.read_text().splitlines():
        messages = json.loads(line)["messages"]
        parts = [part for message in messages for part in message["content"] if part["type"] == "image"]
        images = [Image.open(calib.parent / part["image"]).convert("RGB") for part in parts]
        encoded = processor(text=[processor.apply_chat_template(messages, tokenize=False)], images=images or None, return_tensors="pt")
        yield {name: encoded[name].tolist() if name in encoded else None for name in TENSORS}


def collate(batch):
    return {name: torch.tensor(value, dtype=torch.bfloat16 if name == "pixel_values" else torch.long)
            for name, value in batch[0].items() if value is not None}


def main():
    model_folder, calib, out, method, scheme = sys.argv[1:]
    start = time.time()
    architecture = json.loads(Path(model_folder, "config.json").read_text())["architectures"][0]
    model = getattr(transformers, architecture).from_pretrained(model_folder, dtype=torch.bfloat16)
    processor = transformers.AutoProcessor.from_pretrained(model_folder)
    rows = list(samples(processor, Path(calib)))
    rounding = QuantizationModifier(targets="Linear", scheme=scheme, ignore=IGNORE)
    calibration = dict(dataset=Dataset.from_list(rows), num_calibration_samples=len(rows), max_seq_length=2048, data_collator=collate,
                       shuffle_calibration_samples=False)
    recipe = [AWQModifier(), rounding] if method == "awq" else [rounding]
    oneshot(model=model, processor=processor, recipe=recipe, **(calibration if method == "awq" else dict(pipeline="datafree")))
    model.save_pretrained(out, save_compressed=True)
    for file in Path(model_folder).iterdir():
        if "safetensors" not in file.name and not Path(out, file.name).exists():
            shutil.copy(file, out)
    print(json.dumps({"seconds": time.time() - start, "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))


main()
