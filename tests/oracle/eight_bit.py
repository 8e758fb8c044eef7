"""What the oracle tests of 8-bit schemes share: slim's results on a toy, compressed-tensors' own rounding of every layer, and the logits
of transformers with the scales that vLLM's kernels find for activations."""
import contextlib
import json
import os
from pathlib import Path

import torch
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.quantization.lifecycle import forward as lifecycle
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.utils import calculate_qparams
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

from kit import DATA, SAMPLES, native_logits, slim, tensors_of
from vl_oracle import divergence, eval_chats, expected_logits, toy_samples

os.environ.setdefault("SLIM_PRODUCTS", "native")  # LibTorch's own products of bf16, as transformers computes them; test_products.py has slim's
TOY = DATA / "toy-qwen3vl"
CALIBRATION = SAMPLES / "calib.jsonl"
CHATS = 8


def compress(build, plugin, scheme, output, *more, model=TOY, **environment):
    """The report of a run."""
    return json.loads(slim(build, "--plugin", plugin, "--scheme", scheme, "--model", model, "--output", output, "--json", *more, **environment))


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def calibration_samples(chats):
    lines = CALIBRATION.read_text().splitlines()[:chats]
    return toy_samples(AutoProcessor.from_pretrained(TOY), [json.loads(line)["messages"] for line in lines])


def watch_linear_inputs(see, chats):
    """see(name, x) for the input of every linear while transformers runs the toy in fp32 on the first calibration chats."""
    model = Qwen3VLForConditionalGeneration.from_pretrained(TOY, dtype=torch.float32).eval()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda module, inputs, name=name: see(name, inputs[0]))
    for sample in calibration_samples(chats):
        expected_logits(model, sample)


def weight_args(folder):
    config = json.loads((Path(folder) / "config.json").read_text())["quantization_config"]
    (group,) = QuantizationConfig.model_validate(config).config_groups.values()
    return group.weights


def units(weight, args):
    """The weight as [..., elements that share a scale]."""
    rows, columns = weight.shape
    if args.strategy == "tensor":
        return weight.reshape(1, -1)
    if args.strategy == "block":
        height, width = args.block_structure
        padded = torch.nn.functional.pad(weight, (0, -columns % width, 0, -rows % height))
        return padded.reshape(padded.shape[0] // height, height, padded.shape[1] // width, width).transpose(1, 2).flatten(2)
    return weight.unsqueeze(1)


def reference(weight, args, arithmetic):
    """Scale and codes by compressed-tensors' functions. arithmetic: the dtype of weight / scale, bf16 as llm-compressor's on a CPU."""
    view = units(weight, args)
    scale, _ = calculate_qparams(view.amin(-1), view.amax(-1), args)
    if args.strategy == "tensor":
        scale = scale.reshape(1)
    dtype = torch.int8 if args.type == "int" else torch.float8_e4m3fn
    codes = quantize(x=weight.to(arithmetic), scale=scale.to(arithmetic), zero_point=None, args=args, dtype=dtype)
    return scale, codes[:weight.shape[0], :weight.shape[1]]


def check_weights(checks, folder, arithmetic, original=TOY):
    """Every quantized layer bit for bit; returns how many there were."""
    source, found, args = tensors_of(original), tensors_of(folder), weight_args(folder)
    layers = [name.removesuffix(".weight_scale") for name in found if name.endswith(".weight_scale")]
    for layer in layers:
        scale, codes = reference(source[layer + ".weight"], args, arithmetic)
        checks.expect(same(found[layer + ".weight_scale"], scale), f"{folder.name}: scale of {layer}")
        checks.expect(same(found[layer + ".weight"], codes), f"{folder.name}: codes of {layer}")
    checks.expect(len(layers) > 0, f"{folder.name}: no quantized layer")
    return len(layers)


def vllm_scales(value, args, module, global_scale=None):
    """The scales that vLLM's kernels find for dynamic activations, and slim with them: max|x| / 127 (or 448) in fp32."""
    grouped = value.unflatten(-1, (-1, args.group_size)) if args.strategy == "group" else value
    largest = grouped.abs().amax() if args.strategy == "tensor" else grouped.abs().amax(-1, keepdim=args.strategy != "group")
    scale = largest.float() / (448 if args.type == "float" else 127)
    scale = torch.where(scale == 0, 1, scale)
    return scale, torch.zeros_like(scale)


@contextlib.contextmanager
def activations_in_fp32(scales=None):
    """On a CPU compressed-tensors simulates activations in the model's dtype: bf16 quotients have 8 bits, so that most int8 codes above 64
    move by a half before they are rounded. Engines divide in fp32, as here. scales: how dynamic scales are found, instead of
    compressed-tensors' max|x| / 127.5 (or 448) in the model's dtype."""
    original = lifecycle.compute_dynamic_scales_and_zp, lifecycle.fake_quantize

    def fake_quantize(x, scale, zero_point, args, **more):
        zero_point = None if zero_point is None else zero_point.float()
        return original[1](x=x.float(), scale=scale.float(), zero_point=zero_point, args=args, **more).to(x.dtype)

    lifecycle.compute_dynamic_scales_and_zp, lifecycle.fake_quantize = scales or original[0], fake_quantize
    try:
        yield
    finally:
        lifecycle.compute_dynamic_scales_and_zp, lifecycle.fake_quantize = original


LARGEST_KL = 1e-5            # both compute the same; bf16
LARGEST_KL_OF_SCALES = 2e-2  # dynamic scales of 127.5 in bf16 for 127 in fp32


def mean_divergence(expected, found):
    return sum(divergence(a, b) for a, b in zip(expected, found)) / len(found)


def check_transformers(checks, build, folder, by_sample=False):
    """transformers loads the checkpoint with no key missing, and computes what slim does: with vLLM's activation scales the same, with
    compressed-tensors' own nearly. by_sample: slim sees one sample at a time too, where the scale is that of all tokens together."""
    model, info = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16, output_loading_info=True)
    checks.expect(not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], f"{folder.name}: keys {info}")
    model.eval()
    samples = toy_samples(AutoProcessor.from_pretrained(TOY), eval_chats(CHATS))
    parts = [[sample] for sample in samples] if by_sample else [samples]
    ours = [logits for part in parts for logits in native_logits(build, folder, part, "bfloat16")]
    logits = lambda: [expected_logits(model, sample) for sample in samples]
    with activations_in_fp32(vllm_scales):
        kl = mean_divergence(logits(), ours)
    with activations_in_fp32():
        kl_of_scales = mean_divergence(logits(), ours)
    print(f"{folder.name}: KL(transformers || slim) {kl:.1e} with vLLM's activation scales, {kl_of_scales:.1e} with compressed-tensors', "
          f"{mean_divergence(logits(), ours):.1e} with its bf16 arithmetic too", flush=True)
    checks.expect(kl <= LARGEST_KL, f"{folder.name}: KL {kl:.2e}, allowed {LARGEST_KL}")
    checks.expect(kl_of_scales <= LARGEST_KL_OF_SCALES, f"{folder.name}: KL {kl_of_scales:.2e} with other scales, allowed {LARGEST_KL_OF_SCALES}")


# ---- ranges of static activations that leave values out ----------------------------------------------------------------------

RANGE_CHATS = 6
PERCENT = 99.9
LAYERS_WITH_RANGES = [f"model.language_model.layers.{layer}" for layer in ("0.self_attn.q_proj", "1.self_attn.o_proj", "2.mlp.down_proj")]


def fake_quantized(x, scale, zero=None, fp8=False):
    if fp8:
        return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale
    zero = 0 if zero is None else zero
    return ((x / scale + zero).round().clamp(-128, 127) - zero) * scale


def least_error(x, scheme):
    """Of ranges that shrink the extremes to 0.1 .. 1 of them; with zero points both ends apart."""
    fp8, shares = scheme.startswith("fp8"), torch.linspace(0.1, 1, 91 if "sym" in scheme or scheme.startswith("fp8") else 31).tolist()
    low, high, largest = x.min().clamp_max(0), x.max().clamp_min(0), x.abs().max()
    if fp8 or scheme.endswith("sym"):
        return min((fake_quantized(x, largest * share / (448 if fp8 else 127.5), fp8=fp8) - x).square().sum().item() for share in shares)
    scales = [((high * above - low * below) / 255, low * below) for above in shares for below in shares]
    return min((fake_quantized(x, scale, (-128 - start / scale).round()) - x).square().sum().item() for scale, start in scales)


def check_narrowed_ranges(checks, build, work, plugin, scheme, search):
    """Static scales by percentile leave the share of the activations that transformers sees outside that they should, and those by `search`
    round these activations as well as any range."""
    seen = {name: [] for name in LAYERS_WITH_RANGES}
    watch_linear_inputs(lambda name, x: seen[name].append(x.flatten()) if name in seen else None, RANGE_CHATS)
    calibration = ("--calib", CALIBRATION, "--num-samples", RANGE_CHATS, "--dtype", "float32", "--set", "run.propagate=float")
    found = {}
    for method in ("percentile", search):
        compress(build, plugin, scheme, work / f"{scheme}-{method}", *calibration, "--set", f"{plugin}.activation_range={method}",
                 "--set", f"{plugin}.percentile={PERCENT}")
        found[method] = tensors_of(work / f"{scheme}-{method}")
    fp8, both_ends = scheme.startswith("fp8"), scheme == "w8a8_static"
    for name, parts in seen.items():
        x = torch.cat(parts)
        of = lambda method, part: found[method].get(f"{name}.{part}", torch.zeros(1)).float()
        scale, zero = of("percentile", "input_scale"), of("percentile", "input_zero_point")
        resolution = x.abs().max() / 1024 + scale * (1 if both_ends else 0) + x.abs().max() * 2 ** -8  # a bin, the zero point's rounding, bf16
        outside = (1 - PERCENT / 100) / (2 if both_ends else 1)
        top, values = (scale * (127 - zero), x) if both_ends else (scale * (448 if fp8 else 127.5), x.abs())
        for end, value in ((1, top), *(((-1, -scale * (-128 - zero)),) if both_ends else ())):
            least = (end * values > value + resolution).float().mean(), (end * values > value - resolution).float().mean()
            checks.expect(least[0] <= outside <= least[1] + 1e-6, f"{scheme}: percentile range of {name}: {value.item()}, outside {least}")
        error = (fake_quantized(x, of(search, "input_scale"), of(search, "input_zero_point"), fp8) - x).square().sum().item()
        best = least_error(x, scheme)
        print(f"{scheme}, {search} of {name}: error {error / best:.4f} of the best range's")
        checks.expect(error <= 1.02 * best, f"{scheme}: {search} of {name}: error {error}, possible {best}")
