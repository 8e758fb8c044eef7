#!/usr/bin/env python3
"""INT8 schemes on the trained toy: weights and scales bit-equal to compressed-tensors' rounding; transformers loads each result and computes
what slim does; static activation scales are those of the activations that transformers sees.

    python tests/oracle/test_int8.py --build BUILD_DIR"""
import json
import shutil
import sys

import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file

from eight_bit import CALIBRATION, TOY, check_narrowed_ranges, check_transformers, check_weights, compress, same, watch_linear_inputs
from kit import run_checks, slim, tensors_of

WITH_SAMPLES = ("w8a8_static", "w8a8_static_sym")
CALIBRATION_CHATS = 6


def check_schemes(checks, build, work):
    for scheme in ("w8a8",) + WITH_SAMPLES:
        calibration = ("--calib", CALIBRATION, "--num-samples", 16) if scheme in WITH_SAMPLES else ()
        report = compress(build, "int8", scheme, work / scheme, *calibration)
        checks.expect((report["calibration"]["samples"] > 0) == (scheme in WITH_SAMPLES), f"{scheme}: samples that were read")
        check_weights(checks, work / scheme, torch.float32)
        check_transformers(checks, build, work / scheme)
        compress(build, "int8", scheme, work / f"{scheme}-bf16", *calibration, "--set", "int8.arithmetic=bf16")
        check_weights(checks, work / f"{scheme}-bf16", torch.bfloat16)
    compress(build, "int8", "w8a16", work / "w8a16", "--group-size", -1)
    check_transformers(checks, build, work / "w8a16")
    message = slim(build, "--plugin", "int8", "--scheme", "w8a8_static", "--model", TOY, "--output", work / "none", fails=True)
    checks.expect("--calib" in message, f"what a static scheme needs: {message}")


def observed_ranges():
    """Extremes of every linear's input over the calibration samples, by module name."""
    ranges = {}

    def see(name, x):
        low, high = ranges.get(name, (x.min(), x.max()))
        ranges[name] = torch.minimum(low, x.min()), torch.maximum(high, x.max())

    watch_linear_inputs(see, CALIBRATION_CHATS)
    return ranges


def check_activations(checks, build, work):
    ranges, equal, count = observed_ranges(), 0, 0
    for scheme, symmetric in (("w8a8_static", False), ("w8a8_static_sym", True)):
        folder = work / f"{scheme}-ranges"
        compress(build, "int8", scheme, folder, "--calib", CALIBRATION, "--num-samples", CALIBRATION_CHATS, "--dtype", "float32",
                 "--set", "run.propagate=float")
        args = QuantizationArgs(num_bits=8, type="int", symmetric=symmetric, strategy="tensor")
        found = tensors_of(folder)
        for name in [name for name in found if name.endswith(".input_scale")]:
            layer = name.removesuffix(".input_scale")
            low, high = (bound.bfloat16().reshape(1) for bound in ranges[layer])
            scale, zero = calculate_qparams(low, high, args)
            equal += same(found[name], scale)
            count += 1
            checks.expect(abs(found[name].item() / scale.item() - 1) < 2 ** -7, f"{scheme}: {name} is {found[name].item()}, expected {scale.item()}")
            zero_name = layer + ".input_zero_point"
            checks.expect((zero_name in found) != symmetric, f"{scheme}: zero point of {layer}")
            if not symmetric:
                checks.expect(abs(found[zero_name].item() - zero.item()) <= 1, f"{scheme}: {zero_name}")
    print(f"static scales: {equal} of {count} equal to compressed-tensors' for the extremes that transformers sees")
    checks.expect(equal >= 0.95 * count and count > 0, f"only {equal} of {count} static scales are equal")


def check_ranges(checks, build, work):
    """Ranges by histogram and percentile are narrower than the extremes, as they should be, and the histograms survive a folded scale."""
    for scheme in WITH_SAMPLES:
        check_narrowed_ranges(checks, build, work, "int8", scheme, "histogram")
    calibration = ("--calib", CALIBRATION, "--num-samples", 12)
    scales = {}
    for activation_range in ("minmax", "histogram", "percentile"):
        folder = work / activation_range
        compress(build, "int8", "w8a8_static_sym", folder, *calibration, "--set", f"int8.activation_range={activation_range}",
                 "--set", "run.propagate=float")
        scales[activation_range] = {name: value.item() for name, value in tensors_of(folder).items() if name.endswith("input_scale")}
    for narrow in ("histogram", "percentile"):
        inside = [scales[narrow][name] <= scales["minmax"][name] for name in scales["minmax"]]
        checks.expect(all(inside), f"{narrow}: ranges beyond the extremes")
        checks.expect(any(scales[narrow][name] < scales["minmax"][name] for name in scales["minmax"]), f"{narrow}: nothing was clipped")
    compress(build, "smooth,int8", "w8a8_static_sym", work / "smooth-percentile", *calibration, "--set", "int8.activation_range=percentile",
             "--set", "int8.percentile=100", "--set", "run.propagate=float")
    compress(build, "smooth,int8", "w8a8_static_sym", work / "smooth-minmax", *calibration, "--set", "run.propagate=float")
    exact, counted = tensors_of(work / "smooth-minmax"), tensors_of(work / "smooth-percentile")
    for name in scales["minmax"]:
        ratio = counted[name].item() / exact[name].item()
        checks.expect(abs(ratio - 1) < 0.02, f"{name}: histogram after a fold {counted[name].item()}, extremes {exact[name].item()}")


def check_inputs(checks, build, work):
    """Checkpoints in fp16, a layer of zeros, and damaged ones."""
    original, layer = tensors_of(TOY), "model.language_model.layers.1.mlp.up_proj"
    work = work / "inputs"

    def checkpoint(name, change):
        folder = work / name
        shutil.copytree(TOY, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
        values = {key: value.half() for key, value in original.items()}
        change(values[layer + ".weight"])
        save_file(values, folder / "model.safetensors", {"format": "pt"})
        config = json.loads((folder / "config.json").read_text().replace("bfloat16", "float16"))
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    fp16 = checkpoint("fp16", lambda weight: weight[3].zero_())
    for plugin, scheme in (("int8", "w8a8"), ("fp8", "fp8_dynamic")):
        compress(build, plugin, scheme, work / scheme, model=fp16)
        found = tensors_of(work / scheme)
        scale = found[layer + ".weight_scale"]
        checks.expect(scale.dtype == torch.float16 and scale[3] > 0 and not found[layer + ".weight"][3].float().any(), f"{scheme}: a row of zeros")
        del found[layer + ".weight_scale"]  # compressed-tensors gives a row of zeros the smallest scale
        save_file(found, work / scheme / "model.safetensors", {"format": "pt"})
        check_weights(checks, work / scheme, torch.float32, original=fp16)
    for name, value in (("nan", float("nan")), ("inf", float("inf"))):
        damaged = checkpoint(name, lambda weight: weight[2, 5].fill_(value))
        for plugin, scheme in (("int8", "w8a8"), ("fp8", "fp8_block")):
            message = slim(build, "--plugin", plugin, "--scheme", scheme, "--model", damaged, "--output", work / "none", fails=True)
            checks.expect(layer + ".weight" in message, f"{scheme}: {name} in a weight: {message}")


if __name__ == "__main__":
    sys.exit(run_checks(check_schemes, check_activations, check_ranges, check_inputs))
