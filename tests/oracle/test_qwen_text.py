"""The native forward pass of Qwen2, Qwen3, their mixtures, Llama and Mistral against transformers: random tiny models of many shapes."""
import os
import sys

import torch
from kit import build_folder, exit_code
from text_oracle import check_random_models
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen2MoeConfig, Qwen3Config, Qwen3MoeConfig

COMMON = dict(vocab_size=96, hidden_size=48, intermediate_size=56, num_hidden_layers=3, max_position_embeddings=64,
              num_attention_heads=4, num_key_value_heads=2)


def rope(kind, **more):
    return {"rope_type": kind, "rope_theta": 10000.0, **more}


def config(kind, **more):
    return kind(**{**COMMON, **more})


CONFIGS = {
    "qwen2 gqa2 tied": config(Qwen2Config, tie_word_embeddings=True),
    "qwen2 mha": config(Qwen2Config, num_key_value_heads=4, rope_parameters=rope("default", rope_theta=1e6), rms_norm_eps=1e-5),
    "qwen2 yarn": config(Qwen2Config, rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    "qwen2 windows, unused": config(Qwen2Config, use_sliding_window=True, sliding_window=40, max_window_layers=1),
    "qwen2 windows from the second layer": config(Qwen2Config, use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "qwen3 windows by layer_types": config(Qwen3Config, head_dim=16, use_sliding_window=True, sliding_window=3,
                                           layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    "qwen3 mqa": config(Qwen3Config, head_dim=24, num_key_value_heads=1),
    "qwen3 bias tied": config(Qwen3Config, head_dim=16, attention_bias=True, tie_word_embeddings=True),
    "qwen3 dynamic rope": config(Qwen3Config, head_dim=12, rope_parameters=rope("dynamic", factor=2.0)),
    "qwen3 gelu": config(Qwen3Config, head_dim=32, num_attention_heads=6, hidden_act="gelu_pytorch_tanh"),
    "llama": config(LlamaConfig, num_key_value_heads=4),
    "llama biases": config(LlamaConfig, attention_bias=True, mlp_bias=True, head_dim=20),
    "llama llama3 rope": config(LlamaConfig, rope_parameters=rope(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)),
    "llama linear rope tied": config(LlamaConfig, rope_parameters=rope("linear", factor=2.5), tie_word_embeddings=True),
    "mistral": config(MistralConfig, head_dim=20, sliding_window=None),
    "mistral, window unused": config(MistralConfig, sliding_window=40, num_key_value_heads=1),
    "mistral, window": config(MistralConfig, sliding_window=5),
    "mistral, window of one": config(MistralConfig, sliding_window=1),
    "qwen2_moe windows": config(Qwen2MoeConfig, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, use_sliding_window=True,
                                shared_expert_intermediate_size=32, sliding_window=4, max_window_layers=8),
    "qwen3_moe windows": config(Qwen3MoeConfig, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24,
                                use_sliding_window=True, sliding_window=4),
    "qwen2_moe shared expert": config(Qwen2MoeConfig, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=24,
                                      shared_expert_intermediate_size=40, norm_topk_prob=False),
    "qwen2_moe some layers dense": config(Qwen2MoeConfig, num_experts=4, num_experts_per_tok=3, moe_intermediate_size=16,
                                          shared_expert_intermediate_size=32, norm_topk_prob=True, decoder_sparse_step=2,
                                          tie_word_embeddings=True),
    "qwen3_moe 8 top 2": config(Qwen3MoeConfig, head_dim=16, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=24,
                                norm_topk_prob=True),
    "qwen3_moe some layers dense": config(Qwen3MoeConfig, head_dim=16, num_experts=6, num_experts_per_tok=3,
                                          moe_intermediate_size=40, norm_topk_prob=False, decoder_sparse_step=2,
                                          num_hidden_layers=4, mlp_only_layers=[3]),
}


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    sys.exit(exit_code(check_random_models(build_folder(), CONFIGS)))
