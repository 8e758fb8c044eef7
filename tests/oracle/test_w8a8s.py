#!/usr/bin/env python3
"""W8A8S on the toy, computed again with numpy from the definition: every code, deq_scale and quant_bias exactly, and the input ranges
of act_method 1 from the activations that transformers sees in the first layer. One run for each way to protect weights; for co_sparse also
that each row's scale is the best of those within a fifth of the largest inlier's."""
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

from kit import DATA, SAMPLES, build_folder, slim, tensors_of

TOY = DATA / "toy-qwen3vl"
CALIBRATION = 8
RUNS = {"fraction": ["--set", "sparse.fraction=0.03"],
        "sigma": ["--set", "sparse.use_sigma=true", "--set", "sparse.sigma_factor=3.0"],
        "closed": ["--set", "sparse.open_outlier=false"],
        "co_sparse": ["--set", "sparse.is_lowbit=false", "--set", "sparse.co_sparse=true", "--set", "sparse.fraction=0.03"]}


def quantize(build, output, *options):
    slim(build, "--plugin", "sparse", "--scheme", "w8a8s", "--model", TOY, "--calib", SAMPLES / "calib.jsonl", "--output", output,
         "--num-samples", CALIBRATION, "--batch-size", 1, "--dtype", "float32", "--json", *options)


def codes_by_definition(weight, run):
    """int8 codes and float32 scales [rows, 1] of a float32 matrix; the threshold in float64."""
    magnitude = np.abs(weight)
    width = weight.shape[1]
    if run == "sigma":
        threshold = 3.0 * magnitude.astype(np.float64).std(axis=1, ddof=1, keepdims=True)
    elif run == "fraction":
        k = int(width * 0.03)
        threshold = np.sort(magnitude, axis=1)[:, width - k][:, None]
    else:
        threshold = np.full((len(weight), 1), np.inf)
    outlier = magnitude > threshold
    scale = np.where(outlier, 0, magnitude).max(axis=1, keepdims=True).astype(np.float32) / np.float32(7)
    assert (scale > 0).all()
    return np.clip(np.rint(weight / scale), -128, 127).astype(np.int8), scale.astype(np.float32), outlier


def co_sparse_by_definition(weight, deq_scale, input_scale):
    """The scales are those of the tried ones, 0.8 to 1.2 times the largest inlier / 7, whose product with the input's was stored; their squared
    error must be the least of all that were tried. One threshold for the whole matrix; inliers take -7..7."""
    magnitude = np.abs(weight)
    k = int(weight.size * 0.03)
    outlier = magnitude > np.sort(magnitude, axis=None)[weight.size - k]
    plain = np.where(outlier, 0, magnitude).max(axis=1, keepdims=True).astype(np.float32) / np.float32(7)
    tried = plain * (torch.arange(-40, 41, dtype=torch.float32) * 0.005 + 1).numpy()
    least, largest = np.where(outlier, -128, -7), np.where(outlier, 127, 7)
    every = [np.clip(np.rint(weight / scale[:, None]), least, largest) for scale in tried.T]
    errors = np.stack([((codes * scale[:, None].astype(np.float64) - weight) ** 2).sum(1) for codes, scale in zip(every, tried.T)], 1)
    stored = input_scale * tried == deq_scale[:, None]
    assert stored.any(1).all(), "a scale that is none of those to be tried"
    chosen = stored.argmax(1)
    rows = np.arange(len(weight))
    assert (errors[rows, chosen] <= errors.min(1) * (1 + 1e-5)).all(), "another scale has a smaller error"  # errors are summed in fp32
    return np.stack(every, 1)[rows, chosen].astype(np.int8), tried[rows, chosen][:, None], outlier


def check_weights(folder, floats, run):
    tensors = load_file(folder / "quant_model_weight_w8a8s.safetensors")
    description = json.loads((folder / "quant_model_description.json").read_text())
    layers = [name[:-len(".weight")] for name, kind in description.items() if kind == "W8A8S" and name.endswith(".weight")]
    assert len(layers) == 4 * 7, layers
    share = 0
    for layer in layers:
        weight = floats[layer + ".weight"].float().numpy()
        if run == "co_sparse":
            codes, scale, outlier = co_sparse_by_definition(weight, tensors[layer + ".deq_scale"].numpy(), tensors[layer + ".input_scale"].numpy())
        else:
            codes, scale, outlier = codes_by_definition(weight, run)
        share += outlier.mean() / len(layers)
        assert (tensors[layer + ".weight"].numpy() == codes).all(), f"{run}: {layer}: codes differ"
        input_scale, offset = tensors[layer + ".input_scale"].numpy(), tensors[layer + ".input_offset"].numpy()
        assert input_scale.dtype == np.float32 and input_scale.shape == (1,) and offset == np.rint(offset)
        deq_scale = input_scale * scale[:, 0]
        assert (tensors[layer + ".deq_scale"].numpy() == deq_scale).all(), f"{run}: {layer}: deq_scale differs"
        bias = floats[layer + ".bias"].double().numpy() if layer + ".bias" in floats else 0.0
        expected = np.rint(bias / deq_scale.astype(np.float64) - float(offset[0]) * codes.astype(np.int64).sum(1))
        assert (tensors[layer + ".quant_bias"].numpy() == expected).all(), f"{run}: {layer}: quant_bias differs"
    print(f"{run}: {len(layers)} layers equal to the definition, {share:.2%} of the weights protected")
    return tensors


def recorded_ranges():
    """Mean of the samples' extremes at the inputs of the first decoder layer's norms, as transformers computes them in float32."""
    processor = AutoProcessor.from_pretrained(TOY)
    model = Qwen3VLForConditionalGeneration.from_pretrained(TOY, dtype=torch.float32)
    seen = {"self_attn.q_proj": [], "mlp.gate_proj": []}
    layer = model.model.language_model.layers[0]
    for name, extremes in seen.items():
        layer.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, extremes=extremes: extremes.append((inputs[0].min().item(), inputs[0].max().item())))
    for line in (SAMPLES / "calib.jsonl").read_text().splitlines()[:CALIBRATION]:
        messages = json.loads(line)["messages"]
        pictures = [Image.open(SAMPLES / part["image"]).convert("RGB") for message in messages if isinstance(message["content"], list)
                    for part in message["content"] if part["type"] == "image"]
        text = processor.apply_chat_template(messages, tokenize=False)
        with torch.no_grad():
            model(**processor(text=[text], images=pictures or None, return_tensors="pt"))
    return {name: tuple(np.mean(extremes, axis=0)) for name, extremes in seen.items()}


def check_ranges(tensors):
    for name, (low, high) in recorded_ranges().items():
        prefix = f"model.language_model.layers.0.{name}"
        low, high = min(low, 0.0), max(high, 0.0)
        scale = (high - low) / 255
        found = tensors[prefix + ".input_scale"].item()
        # Two implementations of one forward pass in float32: their sums differ in the last bits, not the formula.
        assert abs(found - scale) <= 1e-5 * scale, f"{prefix}: input_scale {found}, from transformers' activations {scale}"
        assert tensors[prefix + ".input_offset"].item() == np.rint(-128 - low / scale), f"{prefix}: input_offset"
    q = tensors["model.language_model.layers.0.self_attn.q_proj.input_scale"]
    assert torch.equal(q, tensors["model.language_model.layers.0.self_attn.v_proj.input_scale"]), "q and v read one input"
    print("act_method 1: ranges of the first layer are the means of the samples' extremes")


def main():
    build = build_folder()
    floats = tensors_of(TOY)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for run, options in RUNS.items():
            quantize(build, work / run, *options)
            tensors = check_weights(work / run, floats, run)
        check_ranges(tensors)


main()
