#!/usr/bin/env python3
"""Writes first inputs for the fuzz targets: seeds.py OUT makes OUT/TARGET/*, small and valid, out of the repository's test data."""
import json
import struct
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"

CONFIGS = ["""[model]
path = "m"
[compression]
plugin = ["awq", "gptq"]
[compression.awq]
grid = 20
[compression.quantization]
name = "w4a16"
group_size = 64
[[rule]]
match = ["re:.*down_proj"]
scheme = "w8a16"
plugins = ["rtn"]
[dataset]
path = "calib.jsonl"
[[output]]
path = "a"
[[output]]
path = "b"
group_size = 32
"""]
SAMPLES = [{"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "hi"}]},
                         {"role": "assistant", "content": "yes"}]},
           {"conversations": [{"from": "human", "value": "<image>what?"}, {"from": "gpt", "value": "a cat"}],
            "image": "data:image/png;base64,iVBORw0KGgo="},
           {"question": "q", "answers": ["a", "b"]}, {"instruction": "do", "input": "this", "output": "done"}, {"text": "plain"},
           {"question": "q", "images": [{"bytes": "AAAA"}, {"path": "../x.png"}, "file:///etc/passwd"]}]
TOKENIZER = {
    "added_tokens": [{"id": 5, "content": "<|im_end|>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}],
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": r"\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}]},
    "post_processor": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
    "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
    "model": {"type": "BPE", "vocab": {"T": 0, "h": 1, "e": 2, "Th": 3, "The": 4}, "merges": ["T h", ["Th", "e"]]}}


def safetensors(tensors):
    """tensors: name -> (dtype, shape, bytes)"""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, (dtype, shape, values) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + data


def library(folder):
    """A shared library with a plugin's description."""
    source, output = folder / "library.c", folder / "library.so"
    source.write_text('__attribute__((section("slim_meta"), used)) static const char meta[] = "kind=algorithm\\0id=fuzz\\0api=1.0";\nint slim_plugin_v1;\n')
    subprocess.run(["cc", "-shared", "-fPIC", "-nostdlib", "-s", "-Wl,-z,noseparate-code", "-o", output, source], check=True)
    data = output.read_bytes()
    source.unlink(), output.unlink()
    return data


def field(number, value):
    """A field of a protobuf message: bytes, a float or an integer; all shorter than 128."""
    if isinstance(value, bytes):
        return bytes([number << 3 | 2, len(value)]) + value
    return bytes([number << 3 | 5]) + struct.pack("<f", value) if isinstance(value, float) else bytes([number << 3, value])


def sentencepiece(kind):
    pieces = [(b"<unk>", 2), (b"<s>", 3), (b"<0x0A>", 6), (b"\xe2\x96\x81", 1), (b"a", 1), (b"t", 1), (b"at", 1), (b"c", 1), (b"cat", 1)]
    model = b"".join(field(1, field(1, text) + field(2, -float(i)) + field(3, type)) for i, (text, type) in enumerate(pieces))
    return model + field(2, field(3, kind) + b"\x98\x02\x01") + field(3, field(3, 1) + field(4, 0))


def seeds(folder):
    yield "safetensors", [safetensors({}), safetensors({"a": ("F32", [2], bytes(8)), "b": ("U8", [0, 3], b""), "c": ("BF16", [], bytes(2))})]
    yield "index", [json.dumps({"metadata": {"total_size": 8}, "weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}),
                    json.dumps({"weight_map": {"outside": "../outside.safetensors"}})]
    yield "plugin_metadata", [library(folder)]
    yield "config", CONFIGS + [path.read_text() for path in sorted((ROOT / "configs").rglob("*.toml"))[:4]]
    yield "samples", [json.dumps(sample) for sample in SAMPLES] + [b"\xa1\x64text\x62hi"]
    yield "tokenizer", [json.dumps(TOKENIZER)]
    yield "tokenizer_text", ["The cat's 12 caf\u00e9s,\n\n  <|end|> \u4f60\u597d"]
    yield "tokenizer_files", [b"\0" + sentencepiece(1), b"\4" + sentencepiece(2), b"\1YQ== 0\ndA== 1\nYXQ= 2\n",
                              b"\2" + b'{"a":0,"t":1,"at":2}' + b"#version: 1\na t\n\n\n\n"]
    yield "chat_template", [path.read_text() for path in sorted((DATA / "chat_templates").glob("*.jinja"))]
    yield "compressed_folder", [json.dumps({"model_quant_type": "W8A8S", "a.weight": "W8A8S"}),
                                json.dumps({"quantize": "w8a8s", "text_config": {"num_attention_heads": 8, "num_key_value_heads": 2}})]
    images = sorted((DATA / "images").iterdir())
    for target, ending in (("png", ".png"), ("jpeg", ".jpg"), ("webp", ".webp")):
        yield target, [path.read_bytes() for path in images if path.suffix == ending]
    yield "compressed_weight", [bytes([40, 0, 0, 0, 70, 0, 0, 0, 9, 0]), bytes([40, 0, 0, 0, 70, 0, 0, 0, 9, 1, 0, 8, 0, 0, 0, 255])]
    schemes = [bytes([0, 3, kind, bits, granularity, 0, symmetric, inputs])
               for kind in (0, 1) for bits in (2, 3) for granularity in (0, 1, 2) for symmetric in (0, 1) for inputs in (0, 1, 2)]
    damages = [bytes([1, 1, 0, kind, 1, 7]) for kind in range(6)] + [bytes([0, 0, 30, 0, 4])]
    for name in sorted(path.parent.name for path in (ROOT / "plugins").glob("format_*/CMakeLists.txt")):
        yield name, schemes + [scheme + damage for scheme in schemes[::5] for damage in damages]


def main():
    out = Path(sys.argv[1])
    for target, inputs in seeds(Path(sys.argv[1]).parent):
        (out / target).mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(inputs):
            (out / target / f"seed-{number}").write_bytes(data.encode() if isinstance(data, str) else data)


if __name__ == "__main__":
    main()
