"""The native forward passes of Qwen2.5-VL and Qwen2-VL against transformers: random tiny models of many shapes, the trained toy,
generation; their processor."""
import sys

import torch
from transformers import (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLConfig,
                          Qwen2VLForConditionalGeneration)
from vl_oracle import SPECIAL_TOKENS, main, make_sample, random_models_agree, randomize, rename_tensors

# text heads, key-value heads, head_dim, layers; vision heads, hidden, depth, blocks with full attention; patch, merge, temporal,
# window in pixels; tied; the other layout of tensor names
MODELS = {
    "mha": dict(heads=2, kv=2, dim=16, layers=3, v_heads=2, v_hidden=32, depth=3, full=[1], window=24, tied=True),
    "gqa4": dict(heads=8, kv=2, dim=16, layers=2, v_heads=4, v_hidden=32, depth=2, full=[], window=40, tied=False, nested=True),
    "mqa": dict(heads=3, kv=1, dim=32, layers=3, v_heads=1, v_hidden=16, depth=4, full=[3, 0], window=37, tied=False),
    "window_of_one": dict(heads=4, kv=2, dim=8, layers=2, v_heads=2, v_hidden=24, depth=2, full=[1], window=12, tied=True),
    "merge3": dict(heads=4, kv=1, dim=16, layers=4, v_heads=2, v_hidden=16, depth=3, full=[2], window=24, tied=True, merge=3,
                   patch=4, temporal=1, nested=True),
    "yarn": dict(heads=2, kv=1, dim=32, layers=2, v_heads=2, v_hidden=16, depth=2, full=[0], window=24, tied=False,
                 rope={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}),
    "qwen2_vl": dict(heads=4, kv=2, dim=16, layers=2, v_heads=2, v_hidden=32, depth=2, tied=False),
}


def make_model(m, seed):
    half = m["dim"] // 2
    section = [half - 2 * (half // 3), half // 3, half // 3]
    hidden = m["heads"] * m["dim"]
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": section}
    rope.update(m.get("rope", {}))
    text = dict(vocab_size=96, hidden_size=hidden, intermediate_size=48, num_hidden_layers=m["layers"],
                num_attention_heads=m["heads"], num_key_value_heads=m["kv"], max_position_embeddings=256, rope_parameters=rope,
                rms_norm_eps=1e-5, pad_token_id=0)
    vision = dict(depth=m["depth"], num_heads=m["v_heads"], patch_size=m.get("patch", 6), spatial_merge_size=m.get("merge", 2),
                  temporal_patch_size=m.get("temporal", 2), in_channels=3)
    torch.manual_seed(seed)
    if "window" not in m:
        vision.update(embed_dim=m["v_hidden"], hidden_size=hidden, mlp_ratio=2)
        config = Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=m["tied"], **SPECIAL_TOKENS)
        return randomize(Qwen2VLForConditionalGeneration(config).eval())
    vision.update(hidden_size=m["v_hidden"], intermediate_size=40, out_hidden_size=hidden, window_size=m["window"],
                  fullatt_block_indexes=m["full"], tokens_per_second=3)
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=m["tied"], **SPECIAL_TOKENS)
    return randomize(Qwen2_5_VLForConditionalGeneration(config).eval())


def nested_names(name, value):
    """The layout of names that transformers has in memory: save_pretrained writes the published one."""
    if name.startswith("visual."):
        name = "model." + name
    elif name.startswith("model.") and not name.startswith(("model.visual.", "model.language_model.")):
        name = "model.language_model." + name.removeprefix("model.")
    yield name, value


def samples_of(shape, model, generator):
    layouts = [([], []), ([(1, 2, 3)], []), ([(1, 1, 1), (1, 4, 2), (1, 3, 5), (1, 7, 6)], []), ([(1, 5, 1)], [(3, 2, 5)]),
               ([], [(2, 3, 1), (1, 4, 4)])]
    samples = [make_sample(model.config, g, v, generator, split_frames=False) for g, v in layouts]
    if "window" in shape:
        samples[3]["second_per_grid_ts"] = torch.tensor([2.0])
        samples[4]["second_per_grid_ts"] = torch.tensor([0.5, 1.0])
    return samples


def layout_of(shape, model):
    return (lambda folder: rename_tensors(folder, nested_names)) if "nested" in shape else lambda folder: None


def check_random_models(build):
    return random_models_agree(build, MODELS, make_model, samples_of, layout_of)


if __name__ == "__main__":
    sys.exit(main(Qwen2_5_VLForConditionalGeneration, "toy-qwen25vl", check_random_models))
