"""Configurations and folders as published models have them: keys that were spelled otherwise in older versions, files that lie beside the
weights, prefixes and FP8 of vision-language models. The numbers are those of transformers, or of the same model in its usual layout."""
import json
import math
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from kit import Checks, build_folder, load, native_logits, save, slim
from text_oracle import expected_logits, make_model

ROOT = Path(__file__).resolve().parents[2]
COMMON = dict(vocab_size=96, hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
              max_position_embeddings=256, dtype="bfloat16")
IDS = torch.randint(0, 96, (71,), generator=torch.Generator().manual_seed(8))
LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64, rope_type="llama3")

# What a family's config.json says beside its sizes; None: without the key.
KEYS = {
    "null keys": (LlamaConfig, dict(head_dim=None, rope_scaling=None, rope_parameters=None, rope_theta=10000.0, pad_token_id=None, sliding_window=None)),
    "no architectures and no dtype": (Qwen3Config, dict(architectures=..., dtype=..., torch_dtype=...)),
    "rope_parameters beside a rope_scaling of null": (LlamaConfig, dict(rope_theta=..., rope_scaling=None, rope_parameters={"rope_theta": 5e5, "rope_type": "default"})),
    "rope_scaling beside rope_parameters": (LlamaConfig, dict(rope_theta=..., rope_scaling=LLAMA3, rope_parameters={**LLAMA3, "rope_theta": 5e5})),
    "linear scaling under its old key": (LlamaConfig, dict(rope_parameters=..., rope_theta=10000.0, rope_scaling={"type": "linear", "factor": 4.0})),
    "dynamic scaling": (LlamaConfig, dict(rope_parameters=..., rope_theta=10000.0, rope_scaling={"type": "dynamic", "factor": 2.0})),
    "yarn under its old key": (Qwen2Config, dict(max_position_embeddings=4096, rope_parameters=..., rope_theta=1e6, rope_scaling={
        "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64})),
    "yarn without the original length": (Qwen3Config, dict(max_position_embeddings=64, rope_parameters=..., rope_theta=1e6, rope_scaling={"rope_type": "yarn", "factor": 4.0})),
    "chunked attention for long texts": (Qwen2Config, dict(use_sliding_window=False, sliding_window=32768, max_window_layers=28, dual_chunk_attention_config={
        "chunk_size": 262144, "local_size": 8192, "original_max_position_embeddings": 262144})),
    "one layer with a window": (Qwen3Config, dict(layer_types=["full_attention", "sliding_attention"], sliding_window=8, use_sliding_window=True, max_window_layers=1)),
}


def relative(found, expected):
    return (found - expected).abs().max().item() / expected.abs().max().item()


def check_keys(test, build, work):
    for what, (kind, keys) in KEYS.items():
        folder = work / what
        make_model(kind(**COMMON), 4).bfloat16().save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        config |= {key: value for key, value in keys.items() if value is not ...}
        config = {key: value for key, value in config.items() if keys.get(key) is not ...}
        (folder / "config.json").write_text(json.dumps(config))
        expected = expected_logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), IDS)
        error = relative(native_logits(build, folder, [{"input_ids": IDS}], "float32")[0], expected)
        test.expect(error < 1e-4, what, f"relative error of logits {error:.1e}")


def check_files(test, build, work):
    """Files beside the weights, and tensors in several dtypes, change nothing that is read."""
    usual = work / "usual"
    make_model(Qwen3Config(**COMMON), 5).bfloat16().save_pretrained(usual)
    values, config = load(usual)
    expected = native_logits(build, usual, [{"input_ids": IDS}], "float32")[0]

    def same(what, folder):
        found = native_logits(build, folder, [{"input_ids": IDS}], "float32")[0]
        test.expect(torch.equal(found, expected), what, f"relative error of logits {relative(found, expected):.1e}")

    beside = work / "beside"
    save(beside, values, config)
    save_file({"x": torch.zeros(1)}, beside / "adapter_model.safetensors")
    (beside / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (beside / "original").mkdir()
    (beside / "original/consolidated.00.pth").write_bytes(b"x" * 5000)
    same("adapter and original files beside a merged model", beside)
    indexed = work / "indexed"
    names = sorted(values)
    indexed.mkdir()
    for part, chosen in enumerate((names[::2], names[1::2]), 1):
        save_file({name: values[name] for name in chosen}, indexed / f"model-{part:05}-of-00002.safetensors")
    save_file({"tok_embeddings.weight": torch.zeros(4, 4)}, indexed / "consolidated.safetensors")
    index = {"metadata": {"total_size": 0}, "weight_map": {name: f"model-{1 + i % 2:05}-of-00002.safetensors" for i, name in enumerate(names)}}
    (indexed / "model.safetensors.index.json").write_text(json.dumps(index))
    (indexed / "config.json").write_text(json.dumps(config))
    same("consolidated.safetensors beside an index, and a total_size of 0", indexed)
    for what, metadata in (("no metadata", None), ("metadata of MLX", {"format": "mlx", "modelspec.title": "x \u00e9 \n"})):
        folder = work / what
        folder.mkdir()
        save_file(values, folder / "model.safetensors", metadata)
        (folder / "config.json").write_text(json.dumps(config))
        same(what, folder)
    mixed = work / "mixed"
    save(mixed, {name: value.float() if "norm" in name or "embed" in name or "lm_head" in name else value for name, value in values.items()}, config)
    same("norms, embedding and head in float32", mixed)


def perplexity(build, folder, data, *more):
    return json.loads(slim(build, "eval", folder, "--data", data, "--limit", "2", "--dtype", "float32", "--json", *more))["text_perplexity"]


def relaid(work, name, toy, rename=lambda key: key, change=lambda config: config, more=()):
    """A toy under other tensor names, with another config.json or more tensors."""
    source, folder = ROOT / "tests/data" / toy, work / name
    values, config = load(source)
    save(folder, {**{rename(key): value for key, value in values.items()}, **dict(more)}, change(config))
    for file in source.glob("*.json"):
        if not file.name.startswith(("config", "model")):
            shutil.copy(file, folder)
    for file in source.glob("*.jinja"):
        shutil.copy(file, folder)
    return folder


def check_vision_language(test, build, work):
    data = ROOT / "tests/data/samples/eval_text.txt"
    toy = "toy-qwen3vl"
    expected = perplexity(build, ROOT / "tests/data" / toy, data)
    for what, rename in {"language_model.model.": lambda key: key.replace("model.language_model.", "language_model.model.").replace("model.visual.", "visual."),
                         "no prefix": lambda key: key.removeprefix("model.")}.items():
        found = perplexity(build, relaid(work, f"{toy} {what}", toy, rename), data)
        test.expect(math.isclose(found, expected, rel_tol=1e-6), f"{toy} with names of {what}", f"perplexity {found}, expected {expected}")
    score = relaid(work, "reranker", "toy-qwen3vl", more={"score.weight": torch.zeros(1, 256)}.items())
    found = perplexity(build, score, data)
    test.expect(math.isclose(found, expected, rel_tol=1e-6), "a score head changes nothing", str(found))


def in_blocks(weight):
    """E4M3 in blocks of 128 x 128 with scales in bf16, as the Qwen3-VL-FP8 repositories store it, and what that stands for."""
    codes, scales = torch.empty(weight.shape, dtype=torch.float8_e4m3fn), torch.empty(-(-weight.shape[0] // 128), -(-weight.shape[1] // 128), dtype=torch.bfloat16)
    numbers = torch.empty(weight.shape)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            at = slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128)
            scales[i, j] = weight[at].float().abs().max() / 448
            codes[at] = (weight[at].float() / scales[i, j].float()).to(torch.float8_e4m3fn)
            numbers[at] = codes[at].float() * scales[i, j].float()
    return codes, scales, numbers


def check_fp8_to_int4(test, build, work):
    """Requantizing an FP8 vision-language model: the command that a user types, and its distance to the source."""
    values, config = load(ROOT / "tests/data/toy-qwen3vl")
    decoded = dict(values)
    for name in [name for name in values if "language_model" in name and name.endswith("_proj.weight")]:
        values[name], values[name + "_scale_inv"], decoded[name] = in_blocks(values[name])
    config["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
                                     "modules_to_not_convert": ["lm_head"] + [f"model.visual.blocks.{i}.attn.qkv" for i in range(4)]}
    fp8 = relaid(work, "fp8", "toy-qwen3vl")
    save(fp8, values, config)
    out = work / "int4"
    report = json.loads(slim(build, "--plugin", "awq", "--model", fp8, "--calib", ROOT / "tests/data/samples/calib.jsonl", "--scheme", "w4a16", "--group-size", "32",
                             "--num-samples", "16", "--output", out, "--json"))
    test.expect(any("quantized before" in note for note in report["notes"]), "the report says that the source was rounded before", str(report["notes"]))
    made = load(out)[1]["quantization_config"]
    test.expect(made["quant_method"] == "compressed-tensors", "the output is of the new scheme", str(made)[:80])
    compared = json.loads(slim(build, "eval", out, "--reference", fp8, "--data", ROOT / "tests/data/samples/eval.jsonl", "--limit", "8", "--json"))
    test.expect(0 < compared["answers_kl"] < 0.05, "w4a16 of an FP8 source stays near it", f"KL {compared['answers_kl']}")


def main():
    build = build_folder()
    with tempfile.TemporaryDirectory() as name:
        test = Checks()
        for check in (check_keys, check_files, check_vision_language, check_fp8_to_int4):
            work = Path(name) / check.__name__
            work.mkdir()
            check(test, build, work)
        return test.exit_code()


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
