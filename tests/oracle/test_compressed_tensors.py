"""What slim writes as compressed-tensors must decode there to the same weights, and the other way round, bit for bit; scales,
zero points and codes of min-max rounding must be those of compressed-tensors.

    python tests/oracle/test_compressed_tensors.py --build BUILD_DIR

Codes are compared twice: with quotients in fp32 (what compressed-tensors' GPU kernel computes) and in bf16 (what it computes on
a CPU).
"""
import sys
import tempfile

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.utils import calculate_qparams

from kit import Checks, build_folder, load, module_of, run, save

SHAPES = {"model.layers.0.mlp.up_proj": (96, 256), "model.layers.0.mlp.down_proj": (37, 384), "model.layers.1.self_attn.q_proj": (1, 128),
          "model.layers.1.self_attn.o_proj": (200, 128)}
# Packed formats hold any width per channel; the last entry is one whose streams end in the middle of a word.
ODD_SHAPES = {"model.layers.0.mlp.up_proj": (19, 45), "model.layers.1.mlp.up_proj": (33, 1)}
CASES = [("w4a16", 128), ("w4a16", 32), ("w4a16_asym", 128), ("w4a16_asym", 64), ("w8a16", 128), ("w8a16_asym", 128), ("w3a16", 128),
         ("w3a16_asym", 64), ("w2a16", 64), ("w2a16_asym", 128), ("w8a8", 0), ("w8a8_static", 0), ("fp8_dynamic", 0),
         ("fp8_static", 0), ("fp8_block", 0), ("fp8_a16", 0)]
ODD_CASES = [("w4a16", -1), ("w4a16_asym", -1), ("w3a16", -1), ("w3a16_asym", -1), ("w8a16", -1), ("w8a16_asym", -1), ("fp8_block", 0)]


def weights(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        weight = torch.randn(shape, generator=generator) * 0.05
        weight[torch.rand(shape, generator=generator) < 0.01] *= 8
        tensors[name + ".weight"] = weight.bfloat16()
        tensors[name + ".input_range"] = torch.tensor([-3.140625, 7.8125])
    return tensors


def units(weight, args):
    """The weight as [..., elements that share a scale]."""
    rows, columns = weight.shape
    if args.strategy == "tensor":
        return weight.reshape(1, -1)
    if args.strategy == "group":
        return weight.reshape(rows, -1, args.group_size)
    if args.strategy == "block":
        height, width = args.block_structure
        padded = torch.nn.functional.pad(weight, (0, -columns % width, 0, -rows % height))
        blocks = padded.reshape(padded.shape[0] // height, height, padded.shape[1] // width, width)
        return blocks.transpose(1, 2).flatten(2)
    return weight.unsqueeze(1)


def reference(weight, args, arithmetic):
    """Scale, zero point and codes by compressed-tensors' own functions, in the weight's dtype as llm-compressor calls them."""
    view = units(weight, args)
    scale, zero = calculate_qparams(view.amin(-1), view.amax(-1), args)
    if args.strategy == "tensor":
        scale, zero = scale.reshape(1), zero.reshape(1)
    if args.symmetric:
        zero = None
    x, s = (weight, scale) if arithmetic == "bf16" else (weight.float(), scale.float())
    dtype = torch.int8 if args.type == "int" else torch.float8_e4m3fn
    return scale, zero, quantize(x=x, scale=s, zero_point=zero, args=args, dtype=dtype)[:weight.shape[0], :weight.shape[1]]


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.float(), b.float())


class Check(Checks):
    def __init__(self, build):
        super().__init__()
        self.codec, self.plugin = build / "bin/slim_format_codec", build / "lib/slim/plugins/libslim_format_compressed_tensors.so"

    def run(self, command, *arguments):
        run(self.codec, command, self.plugin, *arguments)

    def case(self, scheme_name, group_size, shapes, arithmetic, folder):
        label = f"{scheme_name} group {group_size} {arithmetic} {list(shapes.values())}"
        source = weights(shapes, seed=7)
        save(f"{folder}/float", source, {})
        self.run("encode", scheme_name, group_size, arithmetic, f"{folder}/float", f"{folder}/slim")
        tensors, config = load(f"{folder}/slim")
        quantization = QuantizationConfig.model_validate(config["quantization_config"])
        (scheme,) = quantization.config_groups.values()
        compressor = BaseCompressor.get_value_from_registry(config["quantization_config"]["format"])
        theirs = {}
        decoded_here = {}
        for name in shapes:
            weight = source[name + ".weight"]
            scale, zero, codes = reference(weight, scheme.weights, arithmetic)
            state = {"weight": weight, "weight_scale": scale}
            if zero is not None:
                state["weight_zero_point"] = zero
            mine = module_of(tensors, name)
            decoded = compressor.decompress(dict(mine), scheme)["weight"]
            decoded_here[name] = decoded
            expected = (codes.float() if zero is None else codes.float() - spread(zero, scheme.weights, weight.shape).float())
            expected = (expected * spread(scale, scheme.weights, weight.shape).float()).bfloat16()
            self.expect(same(mine["weight_scale"], scale), f"{label}: scales of {name}")
            self.expect(same(decoded, expected), f"{label}: {name} decodes to other values than compressed-tensors' own rounding")
            if scheme.input_activations is not None and not scheme.input_activations.dynamic:
                low, high = source[name + ".input_range"].bfloat16()
                input_scale, input_zero = calculate_qparams(low.reshape(1), high.reshape(1), scheme.input_activations)
                self.expect(same(mine["input_scale"], input_scale), f"{label}: input scale of {name}")
                if not scheme.input_activations.symmetric:
                    self.expect(same(mine["input_zero_point"], input_zero), f"{label}: input zero point of {name}")
            if arithmetic == "bf16":
                packed = compressor.compress(state, scheme)
                for key, value in packed.items():
                    self.expect(key in mine and same(mine[key], value), f"{label}: bytes of {name}.{key}")
                for key in mine.keys() - packed.keys():
                    self.expect(key.startswith("input_"), f"{label}: surplus tensor {name}.{key}")
                theirs.update({f"{name}.{key}": value for key, value in {**mine, **packed}.items()})
        if theirs:
            save(f"{folder}/theirs", theirs, config)
            self.run("decode", f"{folder}/theirs", f"{folder}/decoded")
            decoded, _ = load(f"{folder}/decoded")
            for name in shapes:
                self.expect(same(decoded[name + ".weight"].bfloat16(), decoded_here[name]), f"{label}: {name} decoded by slim")


def spread(scale, args, shape):
    """Scales or zero points over the elements that they serve."""
    rows, columns = shape
    if args.strategy == "tensor":
        return scale.reshape(1, 1)
    if args.strategy == "group":
        return scale.repeat_interleave(args.group_size, 1)
    if args.strategy == "block":
        height, width = args.block_structure
        return scale.repeat_interleave(height, 0)[:rows].repeat_interleave(width, 1)[:, :columns]
    return scale


def main():
    check = Check(build_folder())
    for cases, shapes in ((CASES, SHAPES), (ODD_CASES, ODD_SHAPES)):
        for scheme_name, group_size in cases:
            for arithmetic in ("fp32", "bf16"):
                with tempfile.TemporaryDirectory() as folder:
                    check.case(scheme_name, group_size, shapes, arithmetic, folder)
    return check.exit_code()


if __name__ == "__main__":
    sys.exit(main())
