"""Qwen3-VL-MoE's native forward pass against transformers: experts packed in either orientation, or a tensor each."""
import os
import sys

import torch
from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration
from kit import build_folder, exit_code
from vl_oracle import SPECIAL_TOKENS, make_sample, random_models_agree, randomize, rename_tensors

# text hidden size, experts, experts per token, expert width; layers, those without experts; what the checkpoint holds
MODELS = {
    "published": dict(hidden=32, experts=4, top_k=2, width=24, layers=3, layout="in_out"),
    "as in memory": dict(hidden=32, experts=4, top_k=2, width=24, layers=3, layout="out_in"),
    "a tensor each": dict(hidden=32, experts=3, top_k=1, width=24, layers=2, layout="each"),
    "square gate_up, published": dict(hidden=32, experts=6, top_k=3, width=16, layers=2, layout="in_out"),
    "square gate_up, as in memory": dict(hidden=32, experts=6, top_k=3, width=16, layers=2, layout="out_in"),
    "square down, published": dict(hidden=32, experts=4, top_k=4, width=32, layers=2, layout="in_out"),
    "square down, as in memory": dict(hidden=32, experts=4, top_k=4, width=32, layers=2, layout="out_in"),
    "every second layer": dict(hidden=48, experts=5, top_k=2, width=16, layers=4, step=2, layout="in_out"),
    "some layers dense": dict(hidden=32, experts=4, top_k=2, width=24, layers=3, dense=[1], tied=True, layout="in_out"),
}


def make_model(m, seed):
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    config = Qwen3VLMoeConfig(
        text_config=dict(
            vocab_size=96, hidden_size=m["hidden"], intermediate_size=40, num_hidden_layers=m["layers"], num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, max_position_embeddings=256, rope_parameters=rope, pad_token_id=0,
            num_experts=m["experts"], num_experts_per_tok=m["top_k"], moe_intermediate_size=m["width"],
            decoder_sparse_step=m.get("step", 1), mlp_only_layers=m.get("dense", []), tie_word_embeddings=m.get("tied", False)),
        vision_config=dict(
            depth=2, hidden_size=16, intermediate_size=24, num_heads=2, patch_size=4, out_hidden_size=m["hidden"],
            num_position_embeddings=16, deepstack_visual_indexes=[0]),
        tie_word_embeddings=m.get("tied", False), **SPECIAL_TOKENS)
    torch.manual_seed(seed)
    return randomize(Qwen3VLMoeForConditionalGeneration(config).eval())


def lay_out(folder, model, layout):
    """Puts the model's experts, [experts, out, in], into the checkpoint as `layout` says."""
    memory = model.state_dict()

    def rename(name, value):
        packed = memory.get(name)
        if ".mlp.experts." not in name:
            yield name, value
        elif layout != "each":
            yield name, packed.transpose(1, 2) if layout == "in_out" else packed
        else:
            prefix, kind = name.rsplit(".", 1)
            for expert, matrix in enumerate(packed):
                halves = zip(("gate_proj", "up_proj"), matrix.chunk(2)) if kind == "gate_up_proj" else [(kind, matrix)]
                for part, weight in halves:
                    yield f"{prefix}.{expert}.{part}.weight", weight.clone()

    rename_tensors(folder, rename)


def samples_of(shape, model, generator):
    layouts = [([], []), ([(1, 2, 3)], []), ([(1, 1, 1), (1, 3, 5)], [(2, 2, 2)])]
    return [make_sample(model.config, g, v, generator, split_frames=True) for g, v in layouts]


def layout_of(shape, model):
    return lambda folder: lay_out(folder, model, shape["layout"])


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    sys.exit(exit_code(random_models_agree(build_folder(), MODELS, make_model, samples_of, layout_of)))
