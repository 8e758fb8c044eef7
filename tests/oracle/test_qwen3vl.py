"""Qwen3-VL's native forward pass against transformers: random tiny models of many shapes, the trained toy, generation; its
processor."""
import sys

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from vl_oracle import SPECIAL_TOKENS, main, make_sample, random_models_agree, randomize

# text heads, key-value heads, head_dim, layers; vision heads, hidden, depth, deepstack; patch, merge, temporal; table side; tied
MODELS = {
    "mha": dict(heads=2, kv=2, dim=16, layers=3, v_heads=2, v_hidden=32, depth=3, deepstack=[0, 1], side=6, tied=True),
    "gqa4": dict(heads=8, kv=2, dim=16, layers=2, v_heads=4, v_hidden=32, depth=2, deepstack=[1], side=4, tied=False),
    "mqa": dict(heads=3, kv=1, dim=32, layers=3, v_heads=1, v_hidden=16, depth=4, deepstack=[3, 0, 2], side=5, tied=False),
    "no_deepstack": dict(heads=4, kv=2, dim=8, layers=2, v_heads=2, v_hidden=24, depth=1, deepstack=[], side=8, tied=True),
    "bias": dict(heads=4, kv=4, dim=24, layers=2, v_heads=3, v_hidden=48, depth=2, deepstack=[0], side=3, tied=False, bias=True),
    "merge3": dict(heads=4, kv=1, dim=16, layers=4, v_heads=2, v_hidden=16, depth=3, deepstack=[2, 1], side=7, tied=True, merge=3,
                   patch=4, temporal=1),
    "yarn": dict(heads=2, kv=1, dim=32, layers=2, v_heads=2, v_hidden=16, depth=2, deepstack=[1], side=4, tied=False,
                 rope={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}),
}


def make_model(m, seed):
    half = m["dim"] // 2
    section = [half - 2 * (half // 3), half // 3, half // 3]
    merge, patch, temporal = m.get("merge", 2), m.get("patch", 6), m.get("temporal", 2)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": section, "mrope_interleaved": True}
    rope.update(m.get("rope", {}))
    config = Qwen3VLConfig(
        text_config=dict(
            vocab_size=96, hidden_size=m["heads"] * 16, intermediate_size=48, num_hidden_layers=m["layers"],
            num_attention_heads=m["heads"], num_key_value_heads=m["kv"], head_dim=m["dim"], max_position_embeddings=256,
            attention_bias=m.get("bias", False), rope_parameters=rope, rms_norm_eps=1e-5, pad_token_id=0),
        vision_config=dict(
            depth=m["depth"], hidden_size=m["v_hidden"], intermediate_size=40, num_heads=m["v_heads"], patch_size=patch,
            spatial_merge_size=merge, temporal_patch_size=temporal, out_hidden_size=m["heads"] * 16,
            num_position_embeddings=m["side"] ** 2, deepstack_visual_indexes=m["deepstack"]),
        tie_word_embeddings=m["tied"], **SPECIAL_TOKENS)
    torch.manual_seed(seed)
    return randomize(Qwen3VLForConditionalGeneration(config).eval())


def samples_of(shape, model, generator):
    layouts = [([], []), ([(1, 2, 3)], []), ([(1, 1, 1), (1, 4, 2), (1, 3, 5)], []), ([(1, 5, 1)], [(2, 2, 2)])]
    return [make_sample(model.config, g, v, generator, split_frames=True) for g, v in layouts]


def check_random_models(build):
    return random_models_agree(build, MODELS, make_model, samples_of)


if __name__ == "__main__":
    sys.exit(main(Qwen3VLForConditionalGeneration, "toy-qwen3vl", check_random_models))
