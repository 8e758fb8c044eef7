# SPDX-License-Identifier: Apache-2.0
"""Makes FOLDER/model, a random Llama checkpoint of two layers whose tokens are bytes, and FOLDER/calib.txt.

    python3 toy.py FOLDER [--model-type llama]

The same bytes every time. Needs nothing but Python.
"""
import argparse
import array
import json
import pathlib
import random
import struct

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, VOCABULARY = 128, 256, 2, 4, 2, 256
HEAD_DIM = HIDDEN // HEADS


def shapes():
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        yield layer + "input_layernorm.weight", (HIDDEN,)
        for name, rows in (("q", HIDDEN), ("k", KV_HEADS * HEAD_DIM), ("v", KV_HEADS * HEAD_DIM), ("o", HIDDEN)):
            yield f"{layer}self_attn.{name}_proj.weight", (rows, HIDDEN)
        yield layer + "post_attention_layernorm.weight", (HIDDEN,)
        for name, shape in (("gate", (INTERMEDIATE, HIDDEN)), ("up", (INTERMEDIATE, HIDDEN)), ("down", (HIDDEN, INTERMEDIATE))):
            yield f"{layer}mlp.{name}_proj.weight", shape
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)


def bfloat16(values):
    """The upper halves of the little-endian fp32 values."""
    raw = array.array("f", values).tobytes()
    return b"".join(raw[i + 2:i + 4] for i in range(0, len(raw), 4))


def write_weights(path, generator):
    header, data = {}, []
    end = 0
    for name, shape in shapes():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        if len(shape) == 1:  # a norm
            values = [generator.uniform(0.5, 1.5) for _ in range(count)]
        else:
            values = [generator.gauss(0, 0.08) for _ in range(count)]
        data.append(bfloat16(values))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + 2 * count]}
        end += 2 * count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data))


def byte_letters():
    """The letter that stands for each byte in byte-level tokenizers: printable ones for themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters.update({byte: chr(0x100 + i) for i, byte in enumerate(others)})
    return letters


def tokenizer():
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    vocabulary = {letter: byte for byte, letter in byte_letters().items()}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
            "pre_tokenizer": level, "post_processor": None, "decoder": level,
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocabulary, "merges": []}}


def config(model_type):
    return {"architectures": ["LlamaForCausalLM"], "model_type": model_type, "hidden_size": HIDDEN,
            "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "vocab_size": VOCABULARY, "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0, "hidden_act": "silu", "max_position_embeddings": 2048, "tie_word_embeddings": False,
            "eos_token_id": 0, "torch_dtype": "bfloat16"}


def sentences(generator):
    words = ("the", "a", "small", "large", "model", "weight", "scale", "reads", "keeps", "rounds", "every", "layer", "of", "to")
    return "".join(" ".join(generator.choices(words, k=12)) + ".\n" for _ in range(64))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--model-type", default="llama")
    arguments = parser.parse_args()
    folder = arguments.folder / "model"
    folder.mkdir(parents=True, exist_ok=True)
    generator = random.Random(7)
    write_weights(folder / "model.safetensors", generator)
    (folder / "config.json").write_text(json.dumps(config(arguments.model_type), indent=2))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer()))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": chr(0x100), "model_max_length": 2048}))
    (arguments.folder / "calib.txt").write_text(sentences(generator))


if __name__ == "__main__":
    main()
