#!/usr/bin/env python3
"""slim compress: each rank's files read by a decoder written from docs/compressed-weights.md alone, joined to the very tensors of the
W8A8S checkpoint; --decompress gives them back; the ranks' partial products sum up to the whole layer's; CANN's program, played by a
script, is called as documented; mistakes are told, leave nothing behind, and damaged files are errors."""
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from kit import DATA, SAMPLES, build_folder, save, slim, tensors_of, unpacked

FAKE_CANN = """#!{python}
import struct, sys
k1, n1, *fixed = map(int, sys.argv[1:8])
assert fixed == [1, 1, 1, 0, 0], fixed
matrix, out, index, info = sys.argv[8:]
data = open(matrix, "rb").read()
assert len(data) == k1 * n1 * 512
open(out, "wb").write(data[::-1] + b"padding")
open(index, "wb").write(bytes(8 * -(-k1 // 8) * -(-n1 // 8)))
open(info, "wb").write(struct.pack("<3i", 4, 2, len(data)))
"""


def unpack(weight, index, info):
    """The matrix of one layer, by docs/compressed-weights.md."""
    stream, index = weight.numpy().tobytes(), index.numpy().tobytes()
    columns, rows, k, n, one = info.tolist()
    assert (columns, rows, one) == (8, 8, 1) and stream[0] == 1
    assert int.from_bytes(stream[1:5], "little") == zlib.crc32(info.numpy().tobytes())
    lengths = [part for byte in stream[5:133] for part in (byte & 15, byte >> 4)]
    codes, number = {}, 0
    for length in range(1, 13):
        for value in range(256):
            if lengths[value] == length:
                codes[format(number, f"0{length}b")] = value
                number += 1
        number <<= 1
    n1, k1 = -(-n // 16), -(-k // 32)
    nz, at, tile = np.zeros((k1, n1, 16, 32), np.uint8), 133, 0
    for tile_column in range(0, k1, 8):
        for tile_row in range(0, n1, 8):
            part = nz[tile_column:tile_column + 8, tile_row:tile_row + 8]
            size, crc = (int.from_bytes(index[8 * tile + 4 * i:8 * tile + 4 * i + 4], "little") for i in range(2))
            bits = "".join(format(byte, "08b") for byte in stream[at:at + size])
            values, code = bytearray(), ""
            for bit in bits:
                code += bit
                if code in codes:
                    values.append(codes[code])
                    code = ""
                    if len(values) == part.size:
                        break
            assert zlib.crc32(bytes(values)) == crc
            part[...] = np.frombuffer(bytes(values), np.uint8).reshape(part.shape)
            at, tile = at + size, tile + 1
    assert at == len(stream) and 8 * tile == len(index)
    return torch.from_numpy(nz.transpose(1, 2, 0, 3).reshape(n1 * 16, k1 * 32)[:n, :k].astype(np.int8))


def rank_tensors(folder, kind):
    tensors = load_file(next(folder.glob("*.safetensors")))
    description = json.loads((folder / "quant_model_description.json").read_text())
    assert description["model_quant_type"] == kind
    assert {key for key in description if "." in key} == set(tensors)
    return tensors, description


def check_split(original, folder, ranks):
    """The parts of every layer of the first block, unpacked here, are the slices that the split promises."""
    layers = [name[:-len(".weight")] for name in original if ".layers.0." in name and name.endswith("_proj.weight")]
    assert len(layers) == 7
    parts = [rank_tensors(folder / f"part{rank}-of-{ranks}", "W8A8S_SLIM")[0] for rank in range(ranks)]
    for layer in layers:
        row_parallel = layer.endswith(("o_proj", "down_proj"))
        weights = [unpack(part[layer + ".weight"], part[layer + ".index"], part[layer + ".info"]) for part in parts]
        assert torch.equal(torch.cat(weights, 1 if row_parallel else 0), original[layer + ".weight"]), layer
        x = torch.randint(-128, 128, (3, original[layer + ".weight"].shape[1])).double()
        whole = (x @ original[layer + ".weight"].double().T + original[layer + ".quant_bias"]) * original[layer + ".deq_scale"].double()
        inputs = x.chunk(ranks, 1) if row_parallel else [x] * ranks
        outputs = [(piece @ weight.double().T + part[layer + ".quant_bias"]) * part[layer + ".deq_scale"].double()
                   for piece, weight, part in zip(inputs, weights, parts)]
        assert torch.allclose(sum(outputs) if row_parallel else torch.cat(outputs, 1), whole, rtol=1e-12), layer


def odd_model(folder):
    """Random weights of shapes that divide among four devices and into no fractals: parts of 36, 18 and 37 rows or columns of 72."""
    hidden, inner, heads, cached, head = 72, 148, 8, 4, 18
    config = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": 2,
              "num_attention_heads": heads, "num_key_value_heads": cached, "head_dim": head, "vocab_size": 1856, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
              "max_position_embeddings": 512, "hidden_act": "silu", "tie_word_embeddings": True, "torch_dtype": "float16"}
    shapes = {"model.embed_tokens.weight": (1856, hidden), "model.norm.weight": (hidden,)}
    for block in range(2):
        prefix = f"model.layers.{block}."
        for name, rows in (("q", heads * head), ("k", cached * head), ("v", cached * head)):
            shapes |= {f"{prefix}self_attn.{name}_proj.weight": (rows, hidden), f"{prefix}self_attn.{name}_proj.bias": (rows,)}
        shapes |= {prefix + "self_attn.o_proj.weight": (hidden, heads * head), prefix + "mlp.gate_proj.weight": (inner, hidden),
                   prefix + "mlp.up_proj.weight": (inner, hidden), prefix + "mlp.down_proj.weight": (hidden, inner),
                   prefix + "input_layernorm.weight": (hidden,), prefix + "post_attention_layernorm.weight": (hidden,)}
    save(folder, {name: (torch.ones(shape) if "norm" in name else torch.randn(shape) / hidden ** 0.5).half() for name, shape in shapes.items()}, config)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DATA / "toy-qwen3vl" / name, folder / name)
    return folder


def w8a8s(build, model, output):
    slim(build, "--plugin", "sparse", "--model", model, "--calib", SAMPLES / "calib_text.txt", "--num-samples", 4, "--output", output)
    return output


def check_round_trip(build, source, work, ranks, largest_ratio=0.6):
    packed, back = work / f"{source.name}-packed{ranks}", work / f"{source.name}-back{ranks}"
    report = json.loads(slim(build, "compress", source, "--tp", ranks, "--output", packed, "--json"))
    assert report["type"] == "W8A8S_SLIM" and 0.2 < report["ratio"] < largest_ratio, report
    slim(build, "compress", "--decompress", packed, "--output", back)
    before, after = tensors_of(source), tensors_of(back)
    assert set(before) == set(after)
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype and torch.equal(after[name], tensor), name
    for name in ("config.json", "quant_model_description.json"):
        assert json.loads((source / name).read_text()) == json.loads((back / name).read_text()), name
    assert {f.name for f in source.iterdir()} == {f.name for f in back.iterdir()}
    print(f"{source.name}, {ranks} ranks: {report['layers']} layers, ratio {report['ratio']:.4f}, {len(before)} tensors back")
    return packed


def check_cann(build, source, work):
    tool = work / "cann_compress"
    tool.write_text(FAKE_CANN.format(python=sys.executable))
    tool.chmod(0o755)
    text = slim(build, "compress", source, "--tp", 2, "--output", work / "cann", SLIM_CANN_COMPRESS=str(tool))
    assert "W8A8SC, 2 ranks" in text, text
    original = tensors_of(source)
    layer = "model.layers.0.self_attn.o_proj"
    for rank in range(2):
        folder = work / f"cann/part{rank}-of-2"
        assert [file.name for file in folder.glob("*.safetensors")] == ["quant_model_weight_w8a8sc.safetensors"]
        tensors, description = rank_tensors(folder, "W8A8SC")
        assert description[layer + ".index"] == description[layer + ".quant_bias"] == "W8A8SC"
        weight = original[layer + ".weight"].chunk(2, 1)[rank].numpy()
        n, k = weight.shape
        assert tensors[layer + ".info"].tolist() == [2, 4, k, n, 1]
        nz = weight.reshape(n // 16, 16, k // 32, 32).transpose(2, 0, 1, 3).tobytes()
        assert tensors[layer + ".weight"].numpy().tobytes() == nz[::-1]
    assert not [file for file in (work / "cann").iterdir() if file.name.startswith("cann_")]
    assert json.loads((work / "cann/config.json").read_text())["quantize"] == "w8a8sc"
    assert "CANN's kernels only" in slim(build, "compress", "--decompress", work / "cann", "--output", work / "never", fails=1)
    tool.write_text("#!/bin/sh\nexit 7\n")
    assert "exit code 7" in slim(build, "compress", source, "--tp", 1, "--cann-tool", tool, "--output", work / "never", fails=1)
    print("CANN's program: called as documented, 2 ranks")


def check_mistakes(build, toy, source, packed, work):
    never = work / "never"
    cases = [((source, "--output", never), 2, "--tp"), ((source, "--tp", 3, "--output", never), 2, "does not divide"),
             ((source, "--tp", 4, "--output", never), 2, "heads"), ((source, "--tp", 0, "--output", never), 2, "at least 1"),
             ((source, "--tp", 2), 2, "--output"), ((work / "absent", "--tp", 2, "--output", never), 1, "no such folder"),
             ((toy, "--tp", 2, "--output", never), 2, "w8a8s"), ((source, "--tp", 2, "--output", packed), 2, "--overwrite"),
             ((source, "--tp", 2, "--output", source), 2, "input"), ((source, "--tp", 2, "--codec", "zip", "--output", never), 2, "slim or cann"),
             ((source, "--tp", 2, "--codec", "cann", "--output", never), 2, "--cann-tool"),
             ((source, "--tp", 2, "--cann-tool", work / "absent", "--output", never), 1, "no such program"),
             ((source, "--tp", 2, "--disable-layers", "*.nothing", "--output", never), 2, "matches no layer"),
             (("--decompress", source, "--output", never), 1, "slim_compress.json"),
             (("--decompress", packed, "--tp", 2, "--output", never), 2, "leave it out")]
    for arguments, code, message in cases:
        text = slim(build, "compress", *arguments, fails=code)
        assert message in text and text.count("\n") == 1, (arguments, text)
    slim(build, "compress", source, "--tp", 2, "--disable-layers", "re:.*down_proj", "--output", work / "some")
    tensors, description = rank_tensors(work / "some/part1-of-2", "W8A8S_SLIM")
    kept = "model.layers.1.mlp.down_proj.weight"
    assert description[kept] == "W8A8S" and torch.equal(tensors[kept], tensors_of(source)[kept].chunk(2, 1)[1])
    weights = packed / "part1-of-2/quant_model_weight_w8a8s_slim.safetensors"
    data = bytearray(weights.read_bytes())
    data[-100] ^= 4  # inside the last compressed tensor
    weights.write_bytes(data)
    assert "tile" in slim(build, "compress", "--decompress", packed, "--output", never, fails=1)
    weights.write_bytes(data[:-1])
    slim(build, "compress", "--decompress", packed, "--output", never, fails=1)
    assert not never.exists() and not [file for file in work.iterdir() if file.name.endswith(".partial")]
    print(f"{len(cases) + 2} mistakes told")


def check_interrupt(build, source, work):
    """With a program that takes its time there is a moment to interrupt."""
    tool = work / "slow_cann"
    tool.write_text(f"#!/bin/sh\n: > {work}/started\nsleep 1\nexit 1\n")
    tool.chmod(0o755)
    run = subprocess.Popen([build / "bin/slim", "compress", source, "--tp", "1", "--cann-tool", tool, "--output", work / "gone", "--quiet"],
                           stderr=subprocess.PIPE, text=True)
    while not (work / "started").exists():
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    text = run.communicate()[1]
    assert run.returncode == 130 and "--resume" not in text, (run.returncode, text)
    assert not (work / "gone").exists() and not (work / "gone.partial").exists()
    print("interrupted: exit code 130, nothing left")


def main():
    build = build_folder()
    toy = unpacked(build, "toy-qwen25vl")  # q, k and v have biases
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        source = work / "w8a8s"
        slim(build, "--plugin", "sparse", "--model", toy, "--calib", SAMPLES / "calib.jsonl", "--num-samples", 4, "--output", source)
        check_round_trip(build, source, work, 1)
        packed = check_round_trip(build, source, work, 2)
        check_split(tensors_of(source), packed, 2)
        odd = w8a8s(build, odd_model(work / "odd-model"), work / "odd")
        for ranks in (1, 2, 4):
            check_split(tensors_of(odd), check_round_trip(build, odd, work, ranks, largest_ratio=0.8), ranks)
        check_cann(build, source, work)
        check_interrupt(build, source, work)
        check_mistakes(build, toy, source, packed, work)


main()
