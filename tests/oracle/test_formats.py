"""Checkpoints that slim writes, decoded by numpy code that follows the formats' descriptions (docs/formats.md), and checkpoints that
this code packs from random numbers, decoded by slim: the weights must be the same, bit for bit.

    python tests/oracle/test_formats.py --build BUILD_DIR
"""
import json
import subprocess
import sys
import tempfile

import numpy as np
import torch

from kit import Checks, build_folder, load, module_of, save, tensors_of

SHAPES = {"model.layers.0.mlp.up_proj": (96, 256), "model.layers.0.mlp.down_proj": (32, 384), "model.layers.1.self_attn.q_proj": (64, 128)}
# Streams that end within a word, single rows and columns.
ODD_SHAPES = {"model.layers.0.mlp.up_proj": (19, 45), "model.layers.1.mlp.up_proj": (33, 1), "model.layers.1.mlp.down_proj": (1, 70)}
EIGHTS = {"model.layers.0.mlp.up_proj": (8, 45), "model.layers.1.mlp.up_proj": (40, 1)}
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


# ---- the formats, as they are described ----------------------------------------------------------------------------------

def read_stream(words, bits, count):
    """Values 0..count-1 of every row: value k takes the bits k*bits and up of the row's words, low bit first."""
    flat = np.unpackbits(np.ascontiguousarray(words, "<u4").view(np.uint8).reshape(len(words), -1), axis=1, bitorder="little")
    flat = flat[:, :count * bits].reshape(len(words), count, bits).astype(np.int64)
    return (flat << np.arange(bits)).sum(-1)


def write_stream(values, bits):
    rows, count = values.shape
    flat = ((values[:, :, None] >> np.arange(bits)) & 1).astype(np.uint8).reshape(rows, -1)
    flat = np.pad(flat, ((0, 0), (0, -flat.shape[1] % 32)))
    return np.packbits(flat, axis=1, bitorder="little").view("<u4").astype(np.uint32)


def spread(grouped, columns):
    """[rows, groups] over the columns that they serve."""
    return np.repeat(grouped, columns // grouped.shape[1], axis=1)


def decode_compressed_tensors(tensors, config):
    weights = config["config_groups"]["group_0"]["weights"]
    bits = weights["num_bits"]
    scale = tensors["weight_scale"].float().numpy()
    if "weight_packed" in tensors:
        rows, columns = tensors["weight_shape"].tolist()
        codes = read_stream(words_of(tensors["weight_packed"]), bits, columns) - (1 << bits - 1)
        if "weight_zero_point" in tensors:
            zero = read_stream(words_of(tensors["weight_zero_point"]).T, bits, rows).T - (1 << bits - 1)
            codes = codes - spread(zero, columns)
    else:
        codes = tensors["weight"].float().numpy()
        rows, columns = codes.shape
    if weights["strategy"] == "block":
        height, width = weights["block_structure"]
        scale = np.repeat(np.repeat(scale, height, 0)[:rows], width, 1)[:, :columns]
    elif scale.ndim == 2:
        scale = spread(scale, columns)
    return codes.astype(np.float32) * scale


def decode_awq(tensors, config):
    inverse = np.argsort(AWQ_ORDER)
    codes, zeros = (read_stream(words_of(tensors[name]), 4, tensors[name].shape[1] * 8) for name in ("qweight", "qzeros"))
    codes, zeros = (x.reshape(len(x), -1, 8)[:, :, inverse].reshape(x.shape) for x in (codes, zeros))
    group = config["group_size"] if config["group_size"] > 0 else len(codes)
    index = np.arange(len(codes)) // group
    return ((codes - zeros[index]).astype(np.float32) * tensors["scales"].float().numpy()[index]).T


def decode_gptq(tensors, config):
    bits, version = config["bits"], 1 if config["checkpoint_format"] == "gptq" else 2
    rows = tensors["qweight"].shape[1]
    codes = read_stream(words_of(tensors["qweight"]).T, bits, len(tensors["g_idx"])).T
    zeros = read_stream(words_of(tensors["qzeros"]), bits, rows) + (1 if version == 1 else 0)
    index = tensors["g_idx"].numpy()
    return ((codes - zeros[index]).astype(np.float32) * tensors["scales"].float().numpy()[index]).T


DECODERS = {"compressed_tensors": decode_compressed_tensors, "awq": decode_awq, "gptq": decode_gptq, "gptq_v2": decode_gptq}


# ---- checkpoints -----------------------------------------------------------------------------------------------------------

def words_of(tensor):
    return tensor.contiguous().numpy().view(np.uint32)


def tensor_of(words):
    return torch.from_numpy(np.ascontiguousarray(words).view(np.int32).copy())


class Check(Checks):
    def __init__(self, build):
        super().__init__()
        self.build = build

    def codec(self, command, plugin, *arguments):
        """Does it, and says whether that went well."""
        library = self.build / f"lib/slim/plugins/libslim_format_{plugin}.so"
        done = subprocess.run([self.build / "bin/slim_format_codec", command, library, *map(str, arguments)], capture_output=True, text=True)
        return self.expect(done.returncode == 0, f"{command} of {plugin} {arguments}: {done.stderr}")

    def decoded_by_slim(self, plugin, folder):
        return tensors_of(folder + "-decoded") if self.codec("decode", plugin, folder, folder + "-decoded") else {}

    def writes(self, plugin, schemes, group_size, shapes, scattered=False):
        """slim encodes; numpy and slim decode to the same weights, near the original ones."""
        generator = torch.Generator().manual_seed(11)
        label = f"{plugin} {schemes} group {group_size} {list(shapes.values())}"
        source = {}
        for name, (rows, columns) in shapes.items():
            source[name + ".weight"] = (torch.randn(rows, columns, generator=generator) * 0.05).bfloat16()
            source[name + ".input_range"] = torch.tensor([-3.0, 7.0])
            if scattered:
                source[name + ".group_index"] = torch.randperm(columns, generator=generator).int() // group_size
        with tempfile.TemporaryDirectory() as folder:
            save(f"{folder}/float", source, {})
            if not self.codec("encode", plugin, schemes, group_size, "fp32", f"{folder}/float", f"{folder}/slim"):
                return
            tensors, config = load(f"{folder}/slim")
            mine = self.decoded_by_slim(plugin, f"{folder}/slim")
            if plugin.startswith("gptq"):
                with open(f"{folder}/slim/quantize_config.json") as file:
                    self.expect(json.load(file) == config["quantization_config"], f"{label}: quantize_config.json")
                self.expect(config["quantization_config"]["desc_act"] == scattered, f"{label}: desc_act")
        for name in shapes:
            decoded = DECODERS[plugin](module_of(tensors, name), config["quantization_config"])
            self.expect(np.array_equal(decoded, mine[name + ".weight"].numpy()), f"{label}: {name} decodes to other weights than slim's")
            weight = source[name + ".weight"].float().numpy()
            # Codes of b bits divide the range into 2^b steps; E4M3 has three bits of mantissa.
            step = np.abs(weight).max() * (2 / 2 ** int(schemes[1]) if schemes[0] == "w" else 1 / 16)
            self.expect(np.abs(decoded - weight).max() <= 1.01 * step, f"{label}: {name} is far from the weights")

    def reads(self, plugin, bits, group_size, out, into, symmetric=False, scattered=False):
        """numpy packs random codes, zero points and scales; slim decodes them as numpy does."""
        random = np.random.default_rng(bits * 1000 + out)
        label = f"{plugin} of {bits} bits, group {group_size}, {out} x {into}"
        group = group_size if group_size > 0 else into
        groups = into // group
        codes, scales = random.integers(0, 2 ** bits, (into, out)), (random.random((groups, out)) + 0.01).astype(np.float16)
        least = 1 if plugin == "gptq" else 0
        zeros = np.full((groups, out), 2 ** (bits - 1)) if symmetric else random.integers(least, 2 ** bits, (groups, out))
        tensors = {"scales": torch.from_numpy(scales)}
        if plugin == "awq":
            order = np.array(AWQ_ORDER)
            for name, values in (("qweight", codes), ("qzeros", zeros)):
                tensors[name] = tensor_of(write_stream(values.reshape(len(values), -1, 8)[:, :, order].reshape(values.shape), 4))
            config = {"quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": True, "version": "gemm"}
        else:
            index = np.arange(into) // group
            if scattered:
                index = random.permutation(index)
            tensors["g_idx"] = torch.from_numpy(index.astype(np.int32))
            tensors["qweight"] = tensor_of(write_stream(codes.T, bits).T)
            tensors["qzeros"] = tensor_of(write_stream(zeros - least, bits))
            config = {"quant_method": "gptq", "bits": bits, "group_size": group_size, "sym": symmetric, "desc_act": scattered, "checkpoint_format": plugin}
        name = "model.layers.0.mlp.up_proj"
        with tempfile.TemporaryDirectory() as folder:
            save(f"{folder}/theirs", {f"{name}.{key}": value for key, value in tensors.items()}, {"quantization_config": config})
            mine = self.decoded_by_slim(plugin, f"{folder}/theirs")
        self.expect(name + ".weight" in mine and np.array_equal(mine[name + ".weight"].numpy(), DECODERS[plugin](tensors, config)), label)


def main():
    check = Check(build_folder())
    for scheme, group_size, shapes in (("w4a16", 128, SHAPES), ("w4a16_asym", -1, ODD_SHAPES), ("w8a16_asym", 64, SHAPES), ("w3a16_asym", -1, ODD_SHAPES),
                                       ("w2a16_asym", 64, SHAPES), ("w2a16", -1, ODD_SHAPES), ("w8a8_static", 0, ODD_SHAPES), ("fp8_static", 0, SHAPES),
                                       ("fp8_dynamic", 0, ODD_SHAPES), ("fp8_block", 0, SHAPES), ("fp8_block", 0, ODD_SHAPES)):
        check.writes("compressed_tensors", scheme, group_size, shapes)
    check.writes("awq", "w4a16_asym", 64, SHAPES)
    check.writes("awq", "w4a16", -1, EIGHTS)
    for bits in (2, 3, 4, 8):
        check.writes("gptq", f"w{bits}a16", 128, SHAPES)
        check.writes("gptq_v2", f"w{bits}a16_asym", -1, SHAPES)
        check.writes("gptq", f"w{bits}a16", 32, SHAPES, scattered=True)
        check.reads("gptq", bits, 32, 64, 96)
        check.reads("gptq", bits, -1, 32, 160, symmetric=True)
        check.reads("gptq_v2", bits, 16, 96, 64, scattered=True)
    check.reads("awq", 4, 32, 8, 96)
    check.reads("awq", 4, -1, 24, 33)
    return check.exit_code()


if __name__ == "__main__":
    sys.exit(main())
