#!/usr/bin/env python3
"""peer_llmcompressor.py MODEL CALIB OUT METHOD SCHEME: the same job by llm-compressor 0.14 on the CPU, for comparison.

METHOD: rtn, awq or gptq. SCHEME: a preset of compressed-tensors (W4A16, W4A16_ASYM, W8A8, FP8, FP8_DYNAMIC, FP8_BLOCK), W3A16, or
W8A8_STATIC (activations per tensor, asymmetric).
Prints one JSON line: seconds, peak memory."""
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
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from PIL import Image

IGNORE = ["re:.*lm_head", "re:.*visual.*", "re:.*mlp.gate$", "re:.*mlp.gate.wg$"]
NEEDS_SAMPLES = ("awq", "gptq", "FP8", "W8A8_STATIC")
TENSORS = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw")
torch.Tensor.pin_memory = lambda self, *_, **__: self  # 0.14 pins memory even without CUDA


def samples(model_folder, calib):
    vision = "vision_config" in json.loads(Path(model_folder, "config.json").read_text())
    processor = (transformers.AutoProcessor if vision else transformers.AutoTokenizer).from_pretrained(model_folder)
    for line in calib.read_text().splitlines():
        messages = json.loads(line)["messages"]
        parts = [part for message in messages for part in message["content"] if part["type"] == "image"]
        images = [Image.open(calib.parent / part["image"]).convert("RGB") for part in parts]
        pictures = dict(images=images) if images else {}
        encoded = processor(text=[processor.apply_chat_template(messages, tokenize=False)], return_tensors="pt", **pictures)
        yield {name: encoded[name].tolist() if name in encoded else None for name in TENSORS}


def collate(batch):
    return {name: torch.tensor(value, dtype=torch.bfloat16 if name == "pixel_values" else torch.long)
            for name, value in batch[0].items() if value is not None}


def target(scheme):
    if scheme == "W8A8_STATIC":
        weights = QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="channel")
        inputs = QuantizationArgs(num_bits=8, type="int", symmetric=False, strategy="tensor", observer="static_minmax")
        return dict(config_groups={"group_0": QuantizationScheme(targets=["Linear"], weights=weights, input_activations=inputs)})
    if scheme != "W3A16":
        return dict(targets="Linear", scheme=scheme)
    weights = QuantizationArgs(num_bits=3, type="int", symmetric=True, strategy="group", group_size=128)
    return dict(config_groups={"group_0": QuantizationScheme(targets=["Linear"], weights=weights)})


def main():
    model_folder, calib, out, method, scheme = sys.argv[1:]
    start = time.time()
    architecture = json.loads(Path(model_folder, "config.json").read_text())["architectures"][0]
    model = getattr(transformers, architecture).from_pretrained(model_folder, dtype=torch.bfloat16)
    if isinstance(getattr(model.config, "moe_intermediate_size", None), list):  # 0.14 expects one number for all layers
        model.config.moe_intermediate_size = model.config.moe_intermediate_size[0]
    rows = list(samples(model_folder, Path(calib)))
    kind = GPTQModifier if method == "gptq" else QuantizationModifier
    rounding = kind(ignore=IGNORE, **target(scheme))
    calibration = dict(dataset=Dataset.from_list(rows), num_calibration_samples=len(rows), max_seq_length=2048, data_collator=collate,
                       shuffle_calibration_samples=False)
    calibrate = method in NEEDS_SAMPLES or scheme in NEEDS_SAMPLES
    recipe = [AWQModifier(), rounding] if method == "awq" else [rounding]
    oneshot(model=model, tokenizer=transformers.AutoTokenizer.from_pretrained(model_folder), recipe=recipe,
            **(calibration if calibrate else dict(pipeline="datafree")))
    model.save_pretrained(out, save_compressed=True)
    for file in Path(model_folder).iterdir():
        if "safetensors" not in file.name and not Path(out, file.name).exists():
            shutil.copy(file, out)
    print(json.dumps({"seconds": time.time() - start, "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))


main()
