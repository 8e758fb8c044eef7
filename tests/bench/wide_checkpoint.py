#!/usr/bin/env python3
"""Makes a checkpoint as wide as real models, with random weights whose activations look like those of trained ones.

    wide_checkpoint.py OUT --shape 2048x8192 [--blocks 1] --tokenizer FOLDER [--seed 0]
    wide_checkpoint.py OUT --shape moe --tokenizer FOLDER

Shapes: HIDDENxMLP, a Qwen2; moe: a Qwen3-MoE of 64 experts, 8 to a token. Embeddings have a spectrum that decays with the square root of
the rank, one channel of three hundred is twenty times the others behind every norm, and a few rows of up_proj are large, so that inputs
of down_proj have outlier channels too. Needs torch and safetensors."""
import argparse
import json
import pathlib
import shutil

import torch
from safetensors.torch import save_file

HEAD_DIM = 128
OUTLIERS, OUTLIER_SIZE = 300, 20.0


def config_of(shape, blocks, vocabulary):
    common = dict(num_hidden_layers=blocks, vocab_size=vocabulary, hidden_act="silu", max_position_embeddings=4096, rms_norm_eps=1e-6,
                  rope_theta=1e6, tie_word_embeddings=False, torch_dtype="bfloat16", use_sliding_window=False, bos_token_id=0, eos_token_id=1)
    if shape == "moe":
        return dict(common, architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", hidden_size=2048, intermediate_size=6144,
                    moe_intermediate_size=768, num_experts=64, num_experts_per_tok=8, decoder_sparse_step=1, norm_topk_prob=True,
                    num_attention_heads=16, num_key_value_heads=4, head_dim=HEAD_DIM, mlp_only_layers=[])
    hidden, mlp = (int(number) for number in shape.split("x"))
    return dict(common, architectures=["Qwen2ForCausalLM"], model_type="qwen2", hidden_size=hidden, intermediate_size=mlp,
                num_attention_heads=hidden // HEAD_DIM, num_key_value_heads=max(1, hidden // HEAD_DIM // 4))


def tensors_of(config, generator):
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    moe = config["model_type"] == "qwen3_moe"
    heads, kv_heads = (config[f"num_{kind}_heads"] * HEAD_DIM for kind in ("attention", "key_value"))

    def matrix(out, width, gain=1.0):
        return torch.randn(out, width, generator=generator).mul_(gain / width**0.5).to(torch.bfloat16)

    def norm(width):
        gains = torch.rand(width, generator=generator) + 0.5
        gains[torch.randperm(width, generator=generator)[: max(1, width // OUTLIERS)]] *= OUTLIER_SIZE
        return gains.to(torch.bfloat16)

    def mlp(name, width):
        up = matrix(width, hidden)
        up[torch.randperm(width, generator=generator)[: max(1, width // OUTLIERS)]] *= OUTLIER_SIZE
        yield f"{name}.gate_proj.weight", matrix(width, hidden)
        yield f"{name}.up_proj.weight", up
        yield f"{name}.down_proj.weight", matrix(hidden, width, 0.1)

    spectrum = torch.arange(1, hidden + 1).float().rsqrt()
    directions = torch.randn(hidden, hidden, generator=generator) / hidden**0.5
    yield "model.embed_tokens.weight", ((torch.randn(vocabulary, hidden, generator=generator) * spectrum) @ directions).to(torch.bfloat16)
    yield "lm_head.weight", matrix(vocabulary, hidden)
    yield "model.norm.weight", torch.ones(hidden, dtype=torch.bfloat16)
    for block in range(config["num_hidden_layers"]):
        name = f"model.layers.{block}"
        yield f"{name}.input_layernorm.weight", norm(hidden)
        yield f"{name}.post_attention_layernorm.weight", norm(hidden)
        for kind, width in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            yield f"{name}.self_attn.{kind}_proj.weight", matrix(width, hidden)
            if moe and kind != "v":
                yield f"{name}.self_attn.{kind}_norm.weight", torch.ones(HEAD_DIM, dtype=torch.bfloat16)
            elif not moe:
                yield f"{name}.self_attn.{kind}_proj.bias", torch.zeros(width, dtype=torch.bfloat16)
        yield f"{name}.self_attn.o_proj.weight", matrix(hidden, heads)
        if moe:
            yield f"{name}.mlp.gate.weight", matrix(config["num_experts"], hidden)
            for expert in range(config["num_experts"]):
                yield from mlp(f"{name}.mlp.experts.{expert}", config["moe_intermediate_size"])
        else:
            yield from mlp(f"{name}.mlp", config["intermediate_size"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--shape", required=True)
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tokenizer = json.loads((arguments.tokenizer / "tokenizer.json").read_text())
    vocabulary = -(-(len(tokenizer["model"]["vocab"]) + len(tokenizer["added_tokens"])) // 64) * 64
    config = config_of(arguments.shape, arguments.blocks, vocabulary)
    arguments.out.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors_of(config, torch.Generator().manual_seed(arguments.seed))), arguments.out / "model.safetensors")
    (arguments.out / "config.json").write_text(json.dumps(config, indent=1))
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        shutil.copy(arguments.tokenizer / name, arguments.out)


main()
