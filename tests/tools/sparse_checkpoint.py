#!/usr/bin/env python3
"""Lays out a checkpoint of a model's real tensor names and shapes without its weights.

    sparse_checkpoint.py CONFIG_OR_FOLDER OUT [--dtype BF16]

Headers are real; the data are holes, so a model of hundreds of gigabytes takes a few megabytes of disk. For
planning, inspection and memory tests. If a weight map (*.safetensors.index*.json, or a summary of one by
patterns) lies beside the config, shards are named by it and its tensor names must be the ones laid out here;
otherwise shards of 5 GB are made.
"""
import argparse
import json
import pathlib
import shutil
import struct
import sys

BYTES = {"BF16": 2, "F16": 2, "F32": 4}
SHARD_BYTES = 5_000_000_000


def linear(name, outputs, inputs, bias=False):
    yield f"{name}.weight", [outputs, inputs]
    if bias:
        yield f"{name}.bias", [outputs]


def norm(name, size, bias=False):
    yield f"{name}.weight", [size]
    if bias:
        yield f"{name}.bias", [size]


def per_layer(value, layer):
    """Hunyuan configs give some numbers once for all layers, some as a list."""
    return value[layer] if isinstance(value, list) else value


def gated_mlp(name, hidden, inner, bias=False):
    for projection in ("gate_proj", "up_proj"):
        yield from linear(f"{name}.{projection}", inner, hidden, bias)
    yield from linear(f"{name}.down_proj", hidden, inner, bias)


def attention(name, config, qkv_bias, output_bias, head_norms):
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    key_heads = config.get("num_key_value_heads") or heads
    for projection, count in (("q_proj", heads), ("k_proj", key_heads), ("v_proj", key_heads)):
        yield from linear(f"{name}.{projection}", count * head, hidden, qkv_bias)
    yield from linear(f"{name}.o_proj", hidden, heads * head, output_bias)
    for head_norm in head_norms:
        yield from norm(f"{name}.{head_norm}", head)


def packed_experts(name, config, layer):
    """Qwen3-VL-MoE on the hub: [expert, in, out], gate and up in one tensor."""
    hidden, inner, experts = config["hidden_size"], config["moe_intermediate_size"], config["num_experts"]
    yield f"{name}.gate.weight", [experts, hidden]
    yield f"{name}.experts.gate_up_proj", [experts, hidden, 2 * inner]
    yield f"{name}.experts.down_proj", [experts, inner, hidden]


def separate_experts(name, config, layer):
    hidden, inner, experts = config["hidden_size"], config["moe_intermediate_size"], config["num_experts"]
    yield f"{name}.gate.weight", [experts, hidden]
    for expert in range(experts):
        yield from gated_mlp(f"{name}.experts.{expert}", hidden, inner)


def hunyuan_experts(name, config, layer):
    hidden, inner = config["hidden_size"], per_layer(config["moe_intermediate_size"], layer)
    yield f"{name}.gate.wg.weight", [per_layer(config["num_experts"], layer), hidden]
    for expert in range(per_layer(config["num_experts"], layer)):
        yield from gated_mlp(f"{name}.experts.{expert}", hidden, inner)
    if config.get("use_mixed_mlp_moe"):
        shared = config["intermediate_size"] * per_layer(config["num_shared_expert"], layer)
        yield from gated_mlp(f"{name}.shared_mlp", hidden, shared)


def is_sparse_layer(config, layer):
    if layer in config.get("mlp_only_layers", []):
        return False
    return (layer + 1) % config.get("decoder_sparse_step", 1) == 0


def language(config, prefix, *, qkv_bias, head_norms, experts=None):
    hidden = config["hidden_size"]
    yield f"{prefix}.embed_tokens.weight", [config["vocab_size"], hidden]
    output_bias = config.get("attention_bias", False)
    for layer in range(config["num_hidden_layers"]):
        name = f"{prefix}.layers.{layer}"
        yield from norm(f"{name}.input_layernorm", hidden)
        yield from attention(f"{name}.self_attn", config, qkv_bias or output_bias, output_bias, head_norms)
        yield from norm(f"{name}.post_attention_layernorm", hidden)
        if experts and is_sparse_layer(config, layer):
            yield from experts(f"{name}.mlp", config, layer)
        else:
            bias = config.get("mlp_bias", False)
            yield from gated_mlp(f"{name}.mlp", hidden, config["intermediate_size"], bias)
    yield from norm(f"{prefix}.norm", hidden)


def head(config, text):
    if not config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)):
        yield "lm_head.weight", [text["vocab_size"], text["hidden_size"]]


def qwen3_merger(name, vision, norm_size):
    merged = vision["hidden_size"] * vision["spatial_merge_size"] ** 2
    yield from norm(f"{name}.norm", norm_size, True)
    yield from linear(f"{name}.linear_fc1", merged, merged, True)
    yield from linear(f"{name}.linear_fc2", vision["out_hidden_size"], merged, True)


def qwen3_vision(vision, prefix):
    hidden, patch = vision["hidden_size"], vision["patch_size"]
    channels, frames = vision["in_channels"], vision["temporal_patch_size"]
    yield f"{prefix}.patch_embed.proj.weight", [hidden, channels, frames, patch, patch]
    yield f"{prefix}.patch_embed.proj.bias", [hidden]
    yield f"{prefix}.pos_embed.weight", [vision["num_position_embeddings"], hidden]
    for block in range(vision["depth"]):
        name = f"{prefix}.blocks.{block}"
        yield from norm(f"{name}.norm1", hidden, True)
        yield from norm(f"{name}.norm2", hidden, True)
        yield from linear(f"{name}.attn.qkv", 3 * hidden, hidden, True)
        yield from linear(f"{name}.attn.proj", hidden, hidden, True)
        yield from linear(f"{name}.mlp.linear_fc1", vision["intermediate_size"], hidden, True)
        yield from linear(f"{name}.mlp.linear_fc2", hidden, vision["intermediate_size"], True)
    yield from qwen3_merger(f"{prefix}.merger", vision, hidden)
    merged = hidden * vision["spatial_merge_size"] ** 2
    for i in range(len(vision["deepstack_visual_indexes"])):
        yield from qwen3_merger(f"{prefix}.deepstack_merger_list.{i}", vision, merged)


def qwen25_vision(vision, prefix):
    hidden, patch = vision["hidden_size"], vision["patch_size"]
    channels = vision.get("in_channels", vision.get("in_chans", 3))
    frames = vision.get("temporal_patch_size", 2)
    yield f"{prefix}.patch_embed.proj.weight", [hidden, channels, frames, patch, patch]
    for block in range(vision["depth"]):
        name = f"{prefix}.blocks.{block}"
        yield from norm(f"{name}.norm1", hidden)
        yield from norm(f"{name}.norm2", hidden)
        yield from linear(f"{name}.attn.qkv", 3 * hidden, hidden, True)
        yield from linear(f"{name}.attn.proj", hidden, hidden, True)
        yield from gated_mlp(f"{name}.mlp", hidden, vision["intermediate_size"], True)
    merged = hidden * vision.get("spatial_merge_size", 2) ** 2
    yield from norm(f"{prefix}.merger.ln_q", hidden)
    yield from linear(f"{prefix}.merger.mlp.0", merged, merged, True)
    yield from linear(f"{prefix}.merger.mlp.2", vision["out_hidden_size"], merged, True)


def tensors(config):
    """(name, shape) of every tensor, in the order of the model."""
    kind = config["model_type"]
    text = config.get("text_config", config)
    if kind in ("qwen3_vl", "qwen3_vl_moe"):
        experts = packed_experts if kind == "qwen3_vl_moe" else None
        yield from qwen3_vision(config["vision_config"], "model.visual")
        norms = ("q_norm", "k_norm")
        yield from language(text, "model.language_model", qkv_bias=False, head_norms=norms, experts=experts)
    elif kind == "qwen2_5_vl":
        yield from qwen25_vision(config["vision_config"], "visual")
        yield from language(text, "model", qkv_bias=True, head_norms=())
    elif kind == "qwen2":
        yield from language(text, "model", qkv_bias=True, head_norms=())
    elif kind in ("qwen3", "qwen3_moe"):
        experts = separate_experts if kind == "qwen3_moe" else None
        yield from language(text, "model", qkv_bias=False, head_norms=("q_norm", "k_norm"), experts=experts)
    elif kind in ("hunyuan_v1_dense", "hunyuan_v1_moe"):
        experts = hunyuan_experts if kind == "hunyuan_v1_moe" else None
        norms = ("query_layernorm", "key_layernorm") if config.get("use_qk_norm", True) else ()
        yield from language(text, "model", qkv_bias=False, head_norms=norms, experts=experts)
    else:
        sys.exit(f"model_type {kind!r} is not known here")
    yield from head(config, text)


def size_of(shape, dtype):
    size = BYTES[dtype]
    for dim in shape:
        size *= dim
    return size


def from_summary(summary):
    """A weight map written as pattern -> shard -> layer numbers."""
    weights = {}
    for pattern, shards in summary["patterns"].items():
        for shard, layers in shards.items():
            for layer in layers:
                name = pattern.replace("{N}", str(layer))
                weights[name] = f"model-{int(shard):05d}-of-{summary['shards']:05d}.safetensors"
    return weights


def find_weight_map(folder):
    for path in sorted(folder.glob("*.safetensors.index*.json")):
        return json.loads(path.read_text())["weight_map"]
    for path in sorted(folder.glob("weight_map.summary*.json")):
        return from_summary(json.loads(path.read_text()))
    return None


def check_names(weight_map, names):
    missing, surplus = sorted(set(weight_map) - set(names)), sorted(set(names) - set(weight_map))
    if missing or surplus:
        sys.exit(f"the weight map disagrees: only there {missing[:5]} ({len(missing)}), "
                 f"only here {surplus[:5]} ({len(surplus)})")


def make_weight_map(entries, dtype, shard_bytes=SHARD_BYTES):
    shard, used, shards = 0, 0, {}
    for name, shape in entries:
        size = size_of(shape, dtype)
        if used and used + size > shard_bytes:
            shard, used = shard + 1, 0
        shards[name] = shard
        used += size
    if shard == 0:
        return {name: "model.safetensors" for name in shards}
    return {name: f"model-{i + 1:05d}-of-{shard + 1:05d}.safetensors" for name, i in shards.items()}


def write_shard(path, entries, dtype):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in entries:
        end = offset + size_of(shape, dtype)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    return offset


def write_layout(folder, entries, weight_map, dtype):
    """All shards, and an index if there are several; returns the bytes of all tensors."""
    shards = sorted(set(weight_map.values()))
    total = 0
    for shard in shards:
        mine = [entry for entry in entries if weight_map[entry[0]] == shard]
        total += write_shard(folder / shard, mine, dtype)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return total


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--dtype", choices=sorted(BYTES), default="BF16")
    args = parser.parse_args()
    path = args.config / "config.json" if args.config.is_dir() else args.config
    entries = list(tensors(json.loads(path.read_text())))
    names = [name for name, _ in entries]
    assert len(set(names)) == len(names)
    weight_map = find_weight_map(path.parent)
    if weight_map:
        check_names(weight_map, names)
    else:
        weight_map = make_weight_map(entries, args.dtype)

    args.out.mkdir(parents=True)
    shutil.copyfile(path, args.out / "config.json")
    total = write_layout(args.out, entries, weight_map, args.dtype)
    print(f"{args.out}: {len(entries)} tensors, {total} bytes in {len(set(weight_map.values()))} files")


if __name__ == "__main__":
    main()
