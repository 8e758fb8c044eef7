"""What the oracle tests of 8-bit schemes share: slim's results on a toy, compressed-tensors' own rounding of every layer, and the logits
of transformers with the scales that vLLM's kernels find for activations."""
import contextlib
import json
from pathlib import Path

import torch
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.quantization.lifecycle import forward as lifecycle
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.utils import calculate_qparams
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

from kit import DATA, SAMPLES, native_logits, slim, tensors_of
from vl_oracle import divergence, eval_chats, expected_logits, toy_samples

TOY = DATA / "toy-qwen3vl"
CALIBRATION = SAMPLES / "calib.jsonl"
CHATS = 8


def compress(build, plugin, scheme, output, *more, model=TOY):
    """The report of a run."""
    return json.loads(slim(build, "--plugin", plugin, "--scheme", scheme, "--model", model, "--output", output, "--json", *more))


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
