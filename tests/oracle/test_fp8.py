#!/usr/bin/env python3
"""FP8 schemes on the trained toy: weights and scales bit-equal to compressed-tensors' rounding; transformers loads each result and computes
what slim does; data-free schemes need no calibration; static activation scales and those of an FP8 key/value cache are those of the
model's own activations, keys and values in transformers.

    python tests/oracle/test_fp8.py --build BUILD_DIR"""
import json
import sys

import torch
from transformers import Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl import modeling_qwen3_vl

from eight_bit import CALIBRATION, TOY, calibration_samples, check_narrowed_ranges, check_transformers, check_weights, compress, same, watch_linear_inputs
from kit import run_checks, slim, tensors_of
from vl_oracle import expected_logits

DATA_FREE = ("fp8_dynamic", "fp8_dynamic_tensor", "fp8_block", "fp8_a16")
WITH_SAMPLES = ("fp8_static", "fp8_static_channel")
CALIBRATION_CHATS = 6


def check_schemes(checks, build, work):
    for scheme in DATA_FREE + WITH_SAMPLES:
        calibration = ("--calib", CALIBRATION, "--num-samples", 16) if scheme in WITH_SAMPLES else ()
        folder = work / scheme
        report = compress(build, "fp8", scheme, folder, *calibration)
        checks.expect((report["calibration"]["samples"] > 0) == (scheme in WITH_SAMPLES), f"{scheme}: samples that were read")
        check_weights(checks, folder, torch.float32)
        check_transformers(checks, build, folder, by_sample=scheme == "fp8_dynamic_tensor")
        compress(build, "fp8", scheme, work / f"{scheme}-bf16", *calibration, "--set", "fp8.arithmetic=bf16")
        check_weights(checks, work / f"{scheme}-bf16", torch.bfloat16)
    message = slim(build, "--plugin", "fp8", "--scheme", "fp8_static", "--model", TOY, "--output", work / "none", fails=True)
    checks.expect("--calib" in message, f"what a static scheme needs: {message}")


def check_vision_tower(checks, build, work):
    compress(build, "fp8", "fp8_dynamic", work / "vit", "--quant-vit", "--set", "fp8.arithmetic=bf16")
    layers = check_weights(checks, work / "vit", torch.bfloat16)
    towers = {name.split(".layers.")[0].split(".blocks.")[0] for name in tensors_of(work / "vit") if name.endswith("weight_scale")}
    checks.expect(any("visual" in name for name in towers) and len(towers) > 1, f"towers that were quantized: {towers}")
    check_transformers(checks, build, work / "vit")
    print(f"quant_vit: {layers} layers")
    check_static_vision(checks, build, work)


def check_static_vision(checks, build, work):
    """Static scales of the tower are those of the activations that transformers sees in it."""
    compress(build, "fp8", "fp8_static", work / "static-vit", "--quant-vit", "--calib", CALIBRATION, "--num-samples", CALIBRATION_CHATS,
             "--dtype", "float32", "--set", "run.propagate=float")
    largest = {}

    def see(name, x):
        largest[name] = max(largest.get(name, torch.tensor(0.0)), x.abs().max())

    watch_linear_inputs(see, CALIBRATION_CHATS)
    found = {name.removesuffix(".input_scale"): value.item() for name, value in tensors_of(work / "static-vit").items()
             if name.endswith(".input_scale") and "visual" in name}
    checks.expect(set(found) == {name for name in largest if "visual" in name}, f"layers of the tower: {set(found) ^ set(largest)}")
    for name, scale in found.items():
        expected = largest[name].bfloat16().item() / 448
        checks.expect(abs(scale / expected - 1) < 2 ** -7, f"static scale of {name}: {scale}, expected {expected}")


def check_fused(checks, build, work):
    compress(build, "fp8", "fp8_dynamic_tensor", work / "fused", "--set", "fp8.fuse_scales=true")
    found, source = tensors_of(work / "fused"), tensors_of(TOY)
    prefix = "model.language_model.layers.0."
    for names in (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",)):
        largest = max(source[f"{prefix}{name}.weight"].abs().max() for name in names)
        for name in names:
            checks.expect(same(found[f"{prefix}{name}.weight_scale"], (largest / 448).reshape(1)), f"shared scale of {names}")


class Observed:
    """Largest |x| of every linear's input, and of rotated keys and values, while transformers runs."""

    def __init__(self, model):
        self.largest, self.keys = {}, []
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and "language_model" in name:
                module.register_forward_hook(lambda module, inputs, output, name=name: self.see(name, inputs[0], output))
        rotate = modeling_qwen3_vl.apply_rotary_pos_emb

        def watched(q, k, *arguments, **more):
            rotated = rotate(q, k, *arguments, **more)
            self.keys.append(rotated[1].abs().max())
            return rotated

        modeling_qwen3_vl.apply_rotary_pos_emb = watched

    def see(self, name, x, y):
        for key, value in ((name, x), (name + " output", y)):
            self.largest[key] = max(self.largest.get(key, torch.tensor(0.0)), value.abs().max())


def check_activations(checks, build, work):
    """In fp32 both forward passes agree to 1e-5, so that scales agree after they are rounded to bf16, but for ties."""
    compress(build, "fp8", "fp8_static", work / "cache", "--calib", CALIBRATION, "--num-samples", CALIBRATION_CHATS, "--kv-cache", "fp8",
             "--dtype", "float32", "--set", "run.propagate=float")
    model = Qwen3VLForConditionalGeneration.from_pretrained(TOY, dtype=torch.float32).eval()
    observed = Observed(model)
    for sample in calibration_samples(CALIBRATION_CHATS):
        expected_logits(model, sample)
    found = tensors_of(work / "cache")
    layers = model.config.text_config.num_hidden_layers
    expected = {}
    for index in range(layers):
        prefix = f"model.language_model.layers.{index}.self_attn"
        expected[f"{prefix}.k_scale"] = max(observed.keys[index::layers]) / 448
        expected[f"{prefix}.v_scale"] = observed.largest[f"{prefix}.v_proj output"] / 448
    for name in found:
        if name.endswith(".input_scale"):
            # Extremes are rounded to bf16 before they are divided, as compressed-tensors does.
            expected[name] = observed.largest[name.removesuffix(".input_scale")].bfloat16().float() / 448
    checks.expect({name for name in found if name.endswith(("k_scale", "v_scale"))} == {n for n in expected if n[-7:] in ("k_scale", "v_scale")},
                    "every attention has the scales of its cache")
    equal = 0
    for name, value in expected.items():
        equal += found[name].item() == value.bfloat16().item()
        checks.expect(abs(found[name].item() / value.item() - 1) < 2 ** -8, f"{name}: {found[name].item()}, expected {value.item()}")
        checks.expect(found[name].item() != 1, f"{name} is 1")
    print(f"static scales: {equal} of {len(expected)} equal to transformers' in bf16, the others within one rounding")
    checks.expect(equal >= 0.97 * len(expected), f"only {equal} of {len(expected)} static scales are equal")
    scheme = json.loads((work / "cache/config.json").read_text())["quantization_config"]["kv_cache_scheme"]
    checks.expect(scheme["num_bits"] == 8 and scheme["type"] == "float", f"kv_cache_scheme {scheme}")


def check_ranges(checks, build, work):
    check_narrowed_ranges(checks, build, work, "fp8", "fp8_static", "mse")


if __name__ == "__main__":
    sys.exit(run_checks(check_ranges, check_schemes, check_vision_tower, check_fused, check_activations))
