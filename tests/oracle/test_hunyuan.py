"""HunYuan's native forward pass, dense and mixture of experts, against transformers: random tiny models, the trained toys."""
import os
import sys

import torch
from transformers import HunYuanDenseV1Config, HunYuanMoEV1Config

from kit import build_folder, exit_code, unpacked
from text_oracle import check_random_models, check_trained

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
    build = build_folder()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    good = check_random_models(build, CONFIGS, in_float=lambda name: ".gate.wg." in name, watch=count_unused)
    print(f"experts without tokens: {unused}")
    good &= unused["moe 24 top 1, some unused"] > 0
    for toy in ("toy-hunyuan-dense", "toy-hunyuan-moe"):
        good &= check_trained(build, unpacked(build, toy), 24)
    return exit_code(good)


if __name__ == "__main__":
    sys.exit(main())
