#!/usr/bin/env python3
"""Ascend checkpoints, read by an independent numpy decoder: the description and the tensors name one another, the tensors of each
type have their dtypes and shapes, decode to the original within half a step, and hold deq_scale and quant_bias of the formulas; for
models in bf16 and fp16, with biases and without. Then: slim reads its own files back, and refuses other schemes at once."""
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from kit import DATA, SAMPLES, build_folder, slim, tensors_of, unpacked

STATIC = {"W8A8", "W8A8S"}
EXTRA = {"version", "model_quant_type", "group_size"}


def half_precision(toy, folder):
    """The toy as a checkpoint in fp16."""
    folder.mkdir()
    for file in toy.iterdir():
        if not file.name.startswith("model") and file.name != "config.json":
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / "config.json").write_text((toy / "config.json").read_text().replace("bfloat16", "float16"))
    save_file({name: tensor.half() for name, tensor in tensors_of(toy).items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def number(tensor):
    """float64 values; int64 stands for the bits of a float32."""
    if tensor.dtype == torch.int64:
        return tensor.numpy().astype(np.int32).view(np.float32).astype(np.float64)
    return tensor.double().numpy()


def unpack_pairs(packed):
    """[rows / 2, columns] bytes -> [rows, columns] codes of 4 bits, the even row in the low nibble."""
    packed = packed.numpy()
    low, high = ((packed << 4).astype(np.int8) >> 4), packed >> 4
    return np.stack([low, high], 1).reshape(-1, packed.shape[1])


def check_static(layer, tensors, floats, codes, half):
    scale, offset = tensors[layer + ".input_scale"], tensors[layer + ".input_offset"]
    assert scale.shape == offset.shape == (1,)
    deq_scale = tensors[layer + ".deq_scale"]
    assert deq_scale.dtype == (torch.int64 if half else torch.float32) and deq_scale.shape == (len(codes),)
    if layer + ".weight_scale" in tensors:  # exact for bf16 scales
        product = scale.float() * tensors[layer + ".weight_scale"][:, 0].float()
        assert (number(deq_scale) == product.double().numpy()).all(), f"{layer}: deq_scale"
    bias = floats[layer + ".bias"].double().numpy() if layer + ".bias" in floats else 0.0
    expected = np.rint(bias / number(deq_scale) - number(offset) * codes.astype(np.int64).sum(1))
    assert tensors[layer + ".quant_bias"].dtype == torch.int32
    assert (tensors[layer + ".quant_bias"].numpy() == expected).all(), f"{layer}: quant_bias"
    return codes * (number(deq_scale) / number(scale))[:, None], (number(deq_scale) / number(scale))[:, None]


def check_layer(layer, kind, tensors, floats, half):
    codes = unpack_pairs(tensors[layer + ".weight"]) if kind == "W4A16" else tensors[layer + ".weight"].numpy()
    assert tensors[layer + ".weight"].dtype == torch.int8
    original = floats[layer + ".weight"].double().numpy()
    if kind in STATIC:
        decoded, step = check_static(layer, tensors, floats, codes, half)
    else:
        scale, offset = number(tensors[layer + ".weight_scale"]), number(tensors[layer + ".weight_offset"])
        groups = scale.shape[1]
        step = np.repeat(scale, original.shape[1] // groups, axis=1)
        decoded = (codes - np.repeat(offset, original.shape[1] // groups, axis=1)) * step
    if kind != "W8A8S":  # whose far outliers are clipped
        error = np.abs(decoded - original) / step
        # Half a step by rounding, half by the zero point, and of 255 steps another half by scales in bf16 (8 bits).
        assert error.max() <= (1.1 if kind == "W4A16" else 1.6), f"{layer}: off by {error.max():.2f} steps"
    return codes


def check(folder, floats, kind, half):
    description = json.loads((folder / "quant_model_description.json").read_text())
    tensors = tensors_of(folder)
    assert description["version"] == "1.0.0" and description["model_quant_type"] == kind
    assert {key for key in description if "." in key} == set(tensors), "description and tensors differ"
    assert all("." in key or key in EXTRA for key in description)
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    for part in (config, config.get("text_config"), config.get("vision_config")):
        assert part is None or part["quantize"] == kind.lower()
    layers = [name[:-len(".weight")] for name, found in description.items() if found == kind and name.endswith(".weight")]
    assert layers
    for name, found in description.items():
        if found == "FLOAT":
            assert torch.equal(tensors[name], floats[name]), name
    for layer in layers:
        check_layer(layer, kind, tensors, floats, half)
    return len(layers)


CASES = [("w8a8s", "sparse", "W8A8S", []), ("w8a8_static", "rtn", "W8A8", []), ("w8a8", "rtn", "W8A8_DYNAMIC", []),
         ("w8a16", "rtn", "W8A16", ["--group-size", "-1"]), ("w8a16_asym", "rtn", "W8A16", ["--group-size", "64"]),
         ("w4a16", "rtn", "W4A16", ["--group-size", "64"])]


def main():
    build = build_folder()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        models = {"bf16": DATA / "toy-qwen3vl", "fp16": half_precision(DATA / "toy-qwen3vl", work / "half"),
                  "biases": unpacked(build, "toy-qwen25vl")}
        for which, model in models.items():
            floats = tensors_of(model)
            for scheme, plugin, kind, options in CASES if which == "bf16" else CASES[:2]:
                output = work / f"{which}-{scheme}"
                slim(build, "--plugin", plugin, "--model", model, "--scheme", scheme, "--format", "ascend", *options,
                     "--calib", SAMPLES / "calib.jsonl", "--num-samples", 4, "--output", output)
                stem = "quant_model_weight_" + kind.lower()
                assert (output / f"{stem}.safetensors").exists(), sorted(file.name for file in output.iterdir())
                count = check(output, floats, kind, which == "fp16")
                slim(build, "verify", output, "--reference", model)
                print(f"{which} {scheme}: {count} layers of type {kind}, {len(floats)} float tensors before")
        model = models["bf16"]
        text = slim(build, "--plugin", "sparse", "--model", model, "--scheme", "w8a8s", "--set", "output.max_shard_size=2MB",
                    "--calib", SAMPLES / "calib.jsonl", "--num-samples", 4, "--output", work / "parts")
        parts = sorted(file.name for file in (work / "parts").glob("*.safetensors"))
        assert len(parts) > 1 and parts[0].startswith("quant_model_weight_w8a8s-00001-of-"), parts
        assert (work / "parts/quant_model_weight_w8a8s.safetensors.index.json").exists()
        check(work / "parts", tensors_of(model), "W8A8S", False)
        text = slim(build, "--plugin", "rtn", "--model", model, "--scheme", "fp8_dynamic", "--format", "ascend", "--output", work / "no",
                    fails=1)
        assert "compressed-tensors" in text and not (work / "no").exists(), text


main()
