"""HunYuan's native forward pass, dense and mixture of experts, against transformers: random tiny models, the trained toys."""
import argparse
import os
import sys
from pathlib import Path

import torch
from text_oracle import ROOT, check_random_models, check_trained
from transformers import HunYuanDenseV1Config, HunYuanMoEV1Config

sys.path.insert(0, str(ROOT / "tests" / "tools"))
from packed_model import unpacked

ALPHA = {"rope_type": "dynamic", "alpha": 1000.0, "factor": 1.0, "rope_theta": 10000.0}
COMMON = dict(vocab_size=96, hidden_size=48, intermediate_size=56, num_hidden_layers=3, max_position_embeddings=64,
              num_attention_heads=4, num_key_value_heads=2, head_dim=16, rope_parameters=ALPHA)


def dense(**more):
    return HunYuanDenseV1Config(**{**COMMON, **more})


def mixture(**more):
    return HunYuanMoEV1Config(**{**COMMON, **more})


CONFIGS = {
    "dense gqa2 tied": dense(tie_word_embeddings=True),
    "dense mha bias": dense(num_key_value_heads=4, attention_bias=True),
    "dense mqa plain rope": dense(num_key_value_heads=1, head_dim=24, rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
    "dense linear rope": dense(num_attention_heads=6, rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 10000.0}),
    "moe 4 top 2": mixture(num_experts=4, moe_topk=2),
    "moe 8 top 3 tied": mixture(num_experts=8, moe_topk=3, tie_word_embeddings=True, num_attention_heads=6),
    "moe 2 top 2 bias": mixture(num_experts=2, moe_topk=2, attention_bias=True),
    "moe 24 top 1, some unused": mixture(num_experts=24, moe_topk=1, num_key_value_heads=1, num_hidden_layers=2),
}
unused = {}


def count_unused(name, model, sequences):
    """Experts that no token is routed to."""
    used = {}
    hooks = []
    for i, layer in enumerate(model.model.layers):
        if hasattr(layer.mlp, "gate"):
            hooks.append(layer.mlp.gate.register_forward_hook(
                lambda _, __, output, i=i: used.setdefault(i, set()).update(output[2].flatten().tolist())))
    with torch.no_grad():
        for ids in sequences:
            model(ids[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    unused[name] = sum(model.config.num_experts - len(experts) for experts in used.values())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    build = parser.parse_args().build
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    good = check_random_models(build, CONFIGS, in_float=lambda name: ".gate.wg." in name, watch=count_unused)
    print(f"experts without tokens: {unused}")
    good &= unused["moe 24 top 1, some unused"] > 0
    for folder in (unpacked(build, "toy-hunyuan-dense"), unpacked(build, "toy-hunyuan-moe")):
        good &= check_trained(build, Path(folder), 24)
    print("ok" if good else "FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
