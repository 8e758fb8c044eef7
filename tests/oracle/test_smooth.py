#!/usr/bin/env python3
"""Smoothing before INT8 on the trained toys: scales are those of the formula for the activations that transformers sees, they are taken up by
norms and by every layer that reads them (router and experts too), transformers loads the result, and the KL divergence is far lower.

    python tests/oracle/test_smooth.py --build BUILD_DIR"""
import json
import sys

import torch
from transformers import Qwen3VLForConditionalGeneration

from eight_bit import CALIBRATION, TOY, calibration_samples, check_transformers, compress, watch_linear_inputs
from kit import SAMPLES, run_checks, slim, tensors_of, unpacked
from vl_oracle import expected_logits

CALIBRATION_CHATS = 6
QUALITY_CHATS = 32
OWN_PRODUCTS = {"SLIM_PRODUCTS": "slim"}  # nothing is compared with another program's bits, and LibTorch's products of bf16 take minutes without AVX-512
LARGEST_SHARE = 0.33  # of the KL without smoothing


def largest_inputs():
    """max|x| per channel of every linear's input, by module name."""
    largest = {}

    def see(name, x):
        channels = x.abs().reshape(-1, x.shape[-1]).amax(0)
        largest[name] = torch.maximum(largest[name], channels) if name in largest else channels

    watch_linear_inputs(see, CALIBRATION_CHATS)
    return largest


def check_undone(checks, what, found, source, layer, scale):
    """The codes of a layer are those of W * scale."""
    codes = (source[layer + ".weight"].float() * scale / found[layer + ".weight_scale"].float()).round().clamp(-128, 127)
    moved = (codes - found[layer + ".weight"].float()).abs()
    checks.expect(moved.max() <= 1 and moved.mean() < 1e-4, f"{what}: codes of {layer} are not those of its scaled weight")


def check_formula(checks, build, work):
    compress(build, "smooth,int8", "w8a8", work / "formula", "--calib", CALIBRATION, "--num-samples", CALIBRATION_CHATS, "--dtype", "float32",
             "--set", "run.propagate=float", "--set", "smooth.alpha=0.6")
    found, source, largest = tensors_of(work / "formula"), tensors_of(TOY), largest_inputs()
    count = 0
    for name in [name for name in source if name.endswith(("input_layernorm.weight", "post_attention_layernorm.weight"))]:
        block = name.rsplit(".", 2)[0]
        readers = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj") if "input_layernorm" in name else ("mlp.gate_proj", "mlp.up_proj")
        weight = torch.stack([source[f"{block}.{reader}.weight"].float().abs().amax(0) for reader in readers]).amax(0)
        expected = largest[f"{block}.{readers[0]}"] ** 0.6 / weight ** 0.4
        applied = source[name].float() / found[name].float()
        difference = (applied / expected - 1).abs().max().item()
        checks.expect(difference < 2 ** -7, f"{name}: the scale differs by {difference:.2%}")  # the norm is stored in bf16
        for reader in readers:
            check_undone(checks, "formula", found, source, f"{block}.{reader}", applied)
            count += 1
    checks.expect(count > 0, "no norm was found")
    print(f"scales of {count} layers as the formula gives them")


def check_quality(checks, build, work):
    kl = {}
    for name, plugin, method in (("plain", "int8", ()), ("smoothquant", "smooth,int8", ()), ("m2", "smooth,int8", ("--set", "smooth.method=m2")),
                                 ("iterative", "smooth,int8", ("--set", "smooth.method=iterative"))):
        compress(build, plugin, "w8a8", work / name, "--calib", CALIBRATION, "--num-samples", QUALITY_CHATS, *method, **OWN_PRODUCTS)
        kl[name] = json.loads(slim(build, "eval", work / name, "--reference", TOY, "--data", SAMPLES, "--no-generate", "--json", **OWN_PRODUCTS))["text_kl"]
    print("KL:", ", ".join(f"{name} {value:.5f}" for name, value in kl.items()))
    for name in ("smoothquant", "m2", "iterative"):
        checks.expect(kl[name] < LARGEST_SHARE * kl["plain"], f"{name}: KL {kl[name]:.5f} is not far below {kl['plain']:.5f}")
    check_transformers(checks, build, work / "iterative")


def check_cached_values(checks, build, work):
    """Scales folded into v_proj reach the scale of the cached values: those that the result itself makes."""
    folder = work / "cache"
    compress(build, "smooth,int8", "w8a8", folder, "--calib", CALIBRATION, "--num-samples", QUALITY_CHATS, "--set", "smooth.method=iterative",
             "--kv-cache", "fp8")
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).eval()
    largest = {}
    for name, module in model.named_modules():
        if name.endswith("v_proj"):
            module.register_forward_hook(
                lambda module, inputs, output, name=name: largest.update({name: max(largest.get(name, 0), output.abs().max().item())}))
    for sample in calibration_samples(QUALITY_CHATS):
        expected_logits(model, sample)
    found = tensors_of(folder)
    for name, value in largest.items():
        scale = found[name.removesuffix("v_proj") + "v_scale"].item() * 448
        checks.expect(abs(scale / value - 1) < 0.1, f"{name}: values up to {value:.2f}, the cache's scale holds {scale:.2f}")
    checks.expect(len(largest) > 0, "no v_proj was seen")


def check_experts(checks, build, work):
    """One scale for the norm, the shared MLP, every expert and the router, which stays in float."""
    toy = unpacked(build, "toy-hunyuan-moe")
    compress(build, "smooth,int8", "w8a8", work / "moe", "--calib", SAMPLES / "calib_textqa.jsonl", "--num-samples", 8, model=toy)
    found, source = tensors_of(work / "moe"), tensors_of(toy)
    norms = [name for name in source if name.endswith("post_attention_layernorm.weight") and name.replace("post_attention_layernorm", "mlp.gate.wg") in source]
    checks.expect(len(norms) > 0, "no mixture was found")
    layers = 0
    for norm in norms:
        prefix = norm.removesuffix("post_attention_layernorm.weight") + "mlp."
        applied = source[norm].float() / found[norm].float()
        checks.expect((applied - 1).abs().max().item() > 0.1, f"{norm} was not scaled")
        router = prefix + "gate.wg.weight"
        expected = (source[router].float() * applied).to(source[router].dtype)
        checks.expect(torch.equal(found[router], expected), f"{router} does not undo the norm's scale")
        readers = [name.removesuffix(".weight") for name in source if name.startswith(prefix) and name.endswith(("gate_proj.weight", "up_proj.weight"))]
        for reader in readers:
            check_undone(checks, "moe", found, source, reader, applied)
        layers += len(readers)
    print(f"mixture: {len(norms)} norms, {layers} layers of experts and shared MLPs share their scales")


if __name__ == "__main__":
    sys.exit(run_checks(check_formula, check_quality, check_cached_values, check_experts))
