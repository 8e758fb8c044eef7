#!/usr/bin/env python3
"""Generates a checkpoint with random weights: a qwen3_vl of about the given size, or any known model of the shapes of a config.

    make_checkpoint.py OUT --like FOLDER --blocks 32 --bytes 4GB [--seed 0] [--shard 1GB]
    make_checkpoint.py OUT --like FOLDER --shapes CONFIG_OR_FOLDER [--blocks 2] [--seed 0] [--shard 1GB]

Tokenizer and processor files are those of FOLDER. Without --shapes so are the vocabulary and the vision tower's sizes, and the
language model is made as wide as the size allows. Weights are normal (norms are ones), bfloat16 by truncation, windows of one
pool of 16 million, the same for the same seed, and written as they are drawn: memory stays below 300 MB, and the disk sets the
pace. For memory tests and benchmarks. Needs numpy.
"""
import argparse
import json
import pathlib
import re
import shutil
import struct
import sys

import numpy

import sparse_checkpoint

CHUNK = 4_000_000  # elements written at once
POOL = 4 * CHUNK  # of which they are windows
STEP = 128  # of the hidden size
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def size(text):
    match = re.fullmatch(r"([0-9.]+)\s*([KMG]?I?B?)", text.upper())
    if not match or match[2] not in UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 4GB")
    return int(float(match[1]) * UNITS[match[2]])


def make_config(like, blocks, hidden):
    config = json.loads(json.dumps(like))
    text = config["text_config"]
    heads = hidden // text["head_dim"]
    text.update(hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=blocks)
    text.update(num_attention_heads=heads, num_key_value_heads=heads // 2 if heads % 2 == 0 else heads)
    config["vision_config"]["out_hidden_size"] = hidden
    return config


def shaped_config(path, blocks):
    """The config as it is, or with another number of blocks."""
    config = json.loads((path / "config.json" if path.is_dir() else path).read_text())
    if blocks:
        config.get("text_config", config)["num_hidden_layers"] = blocks
    return config


def total_bytes(config):
    return sum(sparse_checkpoint.size_of(shape, "BF16") for _, shape in sparse_checkpoint.tensors(config))


def widest_config(like, blocks, limit):
    """The largest model that is not larger than the limit."""
    best = None
    for hidden in range(STEP, 65536, STEP):
        config = make_config(like, blocks, hidden)
        if total_bytes(config) > limit:
            break
        best = config
    if best is None:
        needed = total_bytes(make_config(like, blocks, STEP))
        sys.exit(f"{limit} bytes are too few for {blocks} blocks: {needed} are needed")
    return best


def bfloat16(values):
    return (values.view(numpy.uint32) >> 16).astype("<u2")


def make_pool(seed):
    """Random weights, of which a tensor's chunks are windows."""
    generator = numpy.random.default_rng(seed)
    pool = numpy.empty(POOL, "<u2")
    for begin in range(0, POOL, CHUNK):
        values = generator.standard_normal(CHUNK, numpy.float32) * numpy.float32(0.02)
        pool[begin:begin + CHUNK] = bfloat16(values)
    return pool


def draw(name, count, generator, pool):
    """The bytes of a tensor, chunk by chunk."""
    is_norm = re.search(r"norm\d?\.weight$", name)
    for begin in range(0, count, CHUNK):
        length = min(CHUNK, count - begin)
        if is_norm:
            yield bfloat16(numpy.ones(length, numpy.float32)).tobytes()
        else:
            start = generator.integers(POOL - length + 1)
            yield pool[start:start + length].tobytes()


def fill_shard(path, entries, seed, pool):
    """Writes the data after the header that sparse_checkpoint has laid out."""
    with open(path, "r+b") as file:
        (header,) = struct.unpack("<Q", file.read(8))
        file.seek(8 + header)
        for number, (name, shape) in entries:
            generator = numpy.random.default_rng([seed, number])
            for data in draw(name, sparse_checkpoint.size_of(shape, "BF16") // 2, generator, pool):
                file.write(data)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--like", type=pathlib.Path, required=True)
    parser.add_argument("--shapes", type=pathlib.Path, help="a config.json, or a folder that holds one")
    parser.add_argument("--blocks", type=int, help="32 unless --shapes says another number")
    parser.add_argument("--bytes", type=size, default=size("4GB"))
    parser.add_argument("--shard", type=size, default=size("1GB"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.shapes:
        config = shaped_config(args.shapes, args.blocks)
    else:
        like = json.loads((args.like / "config.json").read_text())
        if like["model_type"] != "qwen3_vl":
            sys.exit(f"{args.like}: model_type {like['model_type']!r}, expected qwen3_vl")
        config = widest_config(like, args.blocks or 32, args.bytes)
    entries = list(sparse_checkpoint.tensors(config))
    weight_map = sparse_checkpoint.make_weight_map(entries, "BF16", args.shard)

    args.out.mkdir(parents=True)
    for path in sorted(args.like.iterdir()):
        if path.is_file() and ".safetensors" not in path.name and path.name != "config.json":
            shutil.copyfile(path, args.out / path.name)
    (args.out / "config.json").write_text(json.dumps(config, indent=2))
    total = sparse_checkpoint.write_layout(args.out, entries, weight_map, "BF16")
    pool = make_pool(args.seed)
    for shard in sorted(set(weight_map.values())):
        mine = [(i, entry) for i, entry in enumerate(entries) if weight_map[entry[0]] == shard]
        fill_shard(args.out / shard, mine, args.seed, pool)
    text = config.get("text_config", config)
    print(f"{args.out}: hidden size {text['hidden_size']}, {text['num_hidden_layers']} blocks, {len(entries)} tensors, {total} bytes")


if __name__ == "__main__":
    main()
