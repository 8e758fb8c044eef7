"""Checkpoints as they lie on disks: names, heads, copies, buffers and quantized sources of published models. Each is a random tiny model that
transformers saved, laid out anew; logits are those of transformers, outputs hold what engines look for."""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Qwen3Config, Qwen3MoeConfig

from kit import Checks, build_folder, load, native_logits, save, slim, tensors_of
from text_oracle import expected_logits, make_model

COMMON = dict(vocab_size=96, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
              max_position_embeddings=64, dtype="bfloat16")
IDS = torch.randint(0, 96, (23,), generator=torch.Generator().manual_seed(7))


def random_checkpoint(folder, kind=Qwen3Config, seed=3, **more):
    """Tensors and config.json of a random model in bf16, as transformers saves it."""
    make_model(kind(**{**COMMON, **more}), seed).bfloat16().save_pretrained(folder)
    return load(folder)


def logits_of_transformers(folder):
    return expected_logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), IDS)


class Layouts(Checks):
    def __init__(self, build, work):
        super().__init__()
        self.build, self.work = build, work
        self.made = 0

    def folder(self, values, config):
        self.made += 1
        folder = self.work / f"model-{self.made}"
        save(folder, values, config)
        return folder

    def check(self, what, good, found):
        self.expect(good, what, found)

    def same_logits(self, what, folder, expected):
        found = native_logits(self.build, folder, [{"input_ids": IDS}], "float32")[0]
        error = (found - expected).abs().max().item() / expected.abs().max().item()
        self.expect(error < 1e-4, what, f"relative error of logits {error:.1e}")

    def quantized(self, folder, *arguments, plugin="rtn", scheme="w4a16", group=("--group-size", 32)):
        """The report, tensors and config of a run without calibration."""
        out = self.work / f"out-{self.made}"
        size = group if scheme.startswith("w4") else ()
        report = json.loads(slim(self.build, "--plugin", plugin, "--scheme", scheme, *size, "--model", folder, "--output", out, "--overwrite",
                                 "--json", *arguments))
        values, config = load(out)
        return report, values, config

    def refused(self, what, folder, *words):
        done = subprocess.run([self.build / "bin/slim", "plan", "--plugin", "rtn", "--model", folder, "--group-size", "32", "--json"],
                              capture_output=True, text=True)
        missing = [word for word in words if word not in done.stderr]
        self.expect(done.returncode != 0 and not missing, what, f"lacks {missing}: {done.stderr.strip()}")


def check_tied_heads(test):
    base = test.work / "tied"
    values, config = random_checkpoint(base, tie_word_embeddings=True)
    values.pop("lm_head.weight", None)
    expected = logits_of_transformers(base)
    embedding = values["model.embed_tokens.weight"]
    for what, head in (("the same", embedding.clone()), ("another", embedding.flip(0).clone())):
        folder = test.folder({**values, "lm_head.weight": head}, config)
        test.same_logits(f"a tied model that stores {what} head uses the embedding", folder, expected)
        report, made, _ = test.quantized(folder)
        test.check(f"the output of a model that stores {what} head has one", "lm_head.weight" not in made, "both are there")
        words = "differs" if what == "another" else "second copy"
        test.check(f"{what} head is told", any(words in note for note in report["notes"]), str(list(report["notes"])))
    alone = {name: value for name, value in values.items() if name != "model.embed_tokens.weight"}
    folder = test.folder({**alone, "lm_head.weight": embedding}, config)
    test.same_logits("a tied model that stores its head alone", folder, expected)


def check_beside(test):
    values, config = random_checkpoint(test.work / "beside")
    expected = logits_of_transformers(test.work / "beside")
    more = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16), "model.mtp.fc.weight": torch.ones(8, 8).bfloat16(),
            "v_head.summary.weight": torch.ones(1, 128).bfloat16(), "audio_tower.position_ids": torch.arange(4)}
    folder = test.folder({**values, **more}, config)
    test.same_logits("tensors beside the model change nothing", folder, expected)
    report, made, _ = test.quantized(folder)
    copied = all(name in made and torch.equal(made[name], value) for name, value in more.items() if "inv_freq" not in name)
    test.check("tensors beside the model are copied", copied, str(sorted(made)[:5]))
    test.check("rotary buffers are left out", not any("inv_freq" in name for name in made), "they are there")
    counts = {name: note["count"] for name, note in report["notes"].items()}
    test.check("both are counted", sorted(counts.values()) == [1, 3], str(counts))


    inside = {**values, "model.layers.1.self_attn.q_proj.bias": torch.ones(128).bfloat16()}
    test.refused("a tensor inside a block that the model does not have", test.folder(inside, config), "q_proj.bias", "does not belong")


def check_heads_and_prefixes(test):
    values, config = random_checkpoint(test.work / "heads", tie_word_embeddings=False)
    expected = logits_of_transformers(test.work / "heads")
    body = {name: value for name, value in values.items() if name != "lm_head.weight"}
    bare = {name.removeprefix("model."): value for name, value in body.items()}
    for what, tensors in (("no head", body), ("neither head nor prefix", bare), ("a score head", {**body, "score.weight": torch.ones(1, 128).bfloat16()})):
        folder = test.folder(tensors, config)
        _, made, _ = test.quantized(folder)
        first = "layers.0.mlp.up_proj.weight_packed"
        test.check(f"a model with {what} is quantized", any(name.endswith(first) for name in made) and len(made) > len(tensors), str(sorted(made)[:4]))
        done = subprocess.run([test.build / "bin/slim_logits", folder, folder, test.work / "none", "float32"], capture_output=True, text=True)
        test.check(f"a model with {what} gives no logits", done.returncode != 0, "it did")
    check_reranker(test, body, config)
    old = {("language_model." + name): value for name, value in values.items()}
    test.same_logits("names that begin with language_model.", test.folder(old, config), expected)
    test.refused("names of peft", test.folder({f"base_model.model.{name}": value for name, value in values.items()}, config), "base_model.model.", "merge")
    test.refused("names of DDP", test.folder({f"module.{name}": value for name, value in values.items()}, config), '"module."', "model.module")
    lora = {name.replace("q_proj.weight", "q_proj.base_layer.weight"): value for name, value in values.items()}
    test.refused("LoRA tensors", test.folder({**lora, "model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.ones(4, 128)}, config), "LoRA", "merge")


def check_reranker(test, body, config):
    """A head of another kind is a linear layer for loaders: they must not look for its codes."""
    folder = test.folder({**body, "score.weight": torch.randn(1, 128, generator=torch.Generator().manual_seed(9)).bfloat16()},
                         {**config, "architectures": ["Qwen3ForSequenceClassification"], "pad_token_id": 0, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}})
    score = lambda path: (lambda model, info: (model.eval()(IDS[None]).logits.item(), [key for kind in ("missing_keys", "unexpected_keys") for key in info[kind]]))(
        *AutoModelForSequenceClassification.from_pretrained(path, output_loading_info=True, dtype=torch.float32))
    expected, _ = score(folder)
    test.quantized(folder, scheme="w8a16")
    found, wrong = score(test.work / f"out-{test.made}")
    # 128 terms of about 1, each off by the 2 % that 8 bits a row cost this model.
    test.check("a reranker loads in transformers' class for it", not wrong and abs(found - expected) < 4 * 0.02 * 128**0.5, f"{found}, expected {expected}, {wrong}")
    for form in ("awq", "fp8"):
        plugin, scheme = ("rtn", "w4a16_asym") if form == "awq" else ("fp8", "fp8_dynamic_tensor")
        _, _, written = test.quantized(folder, "--format", form, plugin=plugin, scheme=scheme)
        test.check(f"format {form} names the head that stays in float", "score" in written["quantization_config"]["modules_to_not_convert"], str(written)[-200:])


def check_packed_experts(test):
    values, config = random_checkpoint(test.work / "moe", Qwen3MoeConfig, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, norm_topk_prob=True)
    expected = logits_of_transformers(test.work / "moe")
    for layer in range(2):
        prefix = f"model.layers.{layer}.mlp.experts."
        take = lambda expert, name: values.pop(f"{prefix}{expert}.{name}_proj.weight")
        gate_up = torch.stack([torch.cat([take(expert, "gate"), take(expert, "up")]) for expert in range(4)])
        down = torch.stack([take(expert, "down") for expert in range(4)])
        values |= {prefix + "gate_up_proj": gate_up, prefix + "down_proj": down}
    test.same_logits("packed experts of a text model", test.folder(values, config), expected)


def fp8_blocks(weight, side=128):
    scale = torch.empty(-(-weight.shape[0] // side), -(-weight.shape[1] // side))
    codes = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            at = (slice(i * side, (i + 1) * side), slice(j * side, (j + 1) * side))
            scale[i, j] = (weight[at].float().abs().max() / 448).bfloat16().float()
            codes[at] = (weight[at].float() / scale[i, j]).clamp(-448, 448).to(torch.float8_e4m3fn)
    wide = scale.repeat_interleave(side, 0)[:weight.shape[0]].repeat_interleave(side, 1)[:, :weight.shape[1]]
    return codes, scale.bfloat16(), codes.float() * wide


def fp8_sources(values):
    """The linears in blocks and per tensor: stored tensors, quantization_config, and the numbers that they stand for."""
    linears = [name for name in values if name.endswith("_proj.weight")]
    blocks, decoded = dict(values), dict(values)
    for name in linears:
        blocks[name], blocks[name + "_scale_inv"], decoded[name] = fp8_blocks(values[name])
    common = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
    yield "in blocks", blocks, {**common, "weight_block_size": [128, 128]}, decoded
    single, decoded = dict(values), dict(values)
    for name in linears:
        scale = values[name].float().abs().max() / 448
        single[name] = (values[name].float() / scale).to(torch.float8_e4m3fn)
        single[name + "_scale"] = scale.reshape(())
        decoded[name] = single[name].float() * scale
    yield "per tensor", single, common, decoded
    for name in linears:
        single[name.removesuffix("weight") + "input_scale"] = torch.tensor(0.02)
    single |= {f"model.layers.{i}.self_attn.{x}_proj.{x}_scale": torch.tensor(1.0) for i in range(2) for x in "kv"}
    yield "of ModelOpt", single, {"quant_algo": "FP8", "kv_cache_scheme": "FP8", "ignore": ["lm_head"], "producer": {"name": "modelopt"}}, decoded


def check_fp8_sources(test):
    values, config = random_checkpoint(test.work / "fp8", intermediate_size=320)
    for what, stored, quantization, decoded in fp8_sources(values):
        folder = test.folder(stored, {**config, "quantization_config": quantization})
        plain = test.folder({name: value.bfloat16() for name, value in decoded.items()}, config)
        found = json.loads(slim(test.build, "inspect", folder, "--json"))
        test.check(f"inspect names a source {what}", found["quantization"]["method"] == quantization.get("quant_method", "modelopt"), str(found["quantization"]))
        report, made, written = test.quantized(folder)
        _, expected, _ = test.quantized(plain)
        test.check(f"a source {what} is told", any("quantized before" in note for note in report["notes"]), str(report["notes"]))
        name = "model.layers.1.mlp.down_proj.weight_packed"
        test.check(f"w4a16 of a source {what} is that of its numbers", torch.equal(made[name], expected[name]), "other codes")
        test.check(f"the output of a source {what} tells the new scheme alone", written["quantization_config"]["quant_method"] == "compressed-tensors"
                   and not any("scale_inv" in tensor for tensor in made), str(written["quantization_config"])[:80])
        _, kept, _ = test.quantized(folder, "--rule", "*down_proj=none")
        down = kept["model.layers.1.mlp.down_proj.weight"]
        exact = torch.equal(down, decoded["model.layers.1.mlp.down_proj.weight"].bfloat16())
        test.check(f"a layer of a source {what} that stays in float is decoded", exact, str(down.dtype))


def check_fp8_output(test):
    """What slim writes as quant_method fp8, read by transformers' own arithmetic: real = code * scale of its block."""
    values, config = random_checkpoint(test.work / "fp8-out", intermediate_size=320)
    folder = test.work / "fp8-out"
    _, made, written = test.quantized(folder, "--format", "fp8", plugin="fp8", scheme="fp8_block", group=())
    quantization = written["quantization_config"]
    test.check("the config of fp8 in blocks", quantization["quant_method"] == "fp8" and quantization["weight_block_size"] == [128, 128]
               and quantization["modules_to_not_convert"] == ["lm_head"], str(quantization))
    for name in (name for name in values if name.endswith("_proj.weight")):
        scale = made[name + "_scale_inv"].float()
        wide = scale.repeat_interleave(128, 0)[:values[name].shape[0]].repeat_interleave(128, 1)[:, :values[name].shape[1]]
        error = (made[name].float() * wide - values[name].float()).norm() / values[name].float().norm()
        test.check(f"{name} decodes", error < 0.04, f"relative error {error:.3f}")


def check_stale_and_foreign(test):
    values, config = random_checkpoint(test.work / "stale")
    left_over = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    report, _, written = test.quantized(test.folder(values, {**config, "quantization_config": left_over}))
    test.check("a left-over quantization_config is told", any("passed over" in note for note in report["notes"]), str(report["notes"]))
    test.check("a left-over quantization_config is replaced", written["quantization_config"]["quant_method"] == "compressed-tensors", "it is not")
    bits = {name: torch.zeros(value.numel() // 2, 1, dtype=torch.uint8) if name.endswith("_proj.weight") else value for name, value in values.items()}
    test.refused("files of bitsandbytes", test.folder(bits, {**config, "quantization_config": left_over}), "bitsandbytes", "dequantize")


def check_other_folders(test):
    lora, hub = test.work / "lora", test.work / "models--org--name"
    for folder, name in ((lora, "adapter_config.json"), (hub / "snapshots/0123abc", "config.json")):
        folder.mkdir(parents=True)
        (folder / name).write_text("{}")
    test.refused("the folder of a LoRA", lora, "LoRA adapter", "merge")
    test.refused("the root of a model in the Hub's cache", hub, "snapshots/0123abc")


def check_group_sizes(test):
    _, config = random_checkpoint(test.work / "groups", hidden_size=192, intermediate_size=576, num_attention_heads=6)
    folder = test.work / "groups"
    report, made, _ = test.quantized(folder, group=())
    scales = made["model.layers.0.mlp.down_proj.weight_scale"].shape
    test.check("the group that divides every layer is taken", report["common_group_size"] == 64 and scales == (192, 9), f"{report['common_group_size']}, {scales}")
    done = subprocess.run([test.build / "bin/slim", "plan", "--plugin", "rtn", "--scheme", "w4a16", "--group-size", "128", "--model", folder],
                          capture_output=True, text=True)
    test.check("a group that was asked for is refused with one that fits", done.returncode == 2 and "--group-size 64" in done.stderr, done.stderr)
    done = subprocess.run([test.build / "bin/slim", "plan", "--plugin", "rtn", "--scheme", "w4a16", "--group-size", "128", "--model", folder,
                           "--set", "compression.quantization.group_size_fallback=channel"], capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("group size")]
    test.check("notes on groups are a line for each width", len(lines) == 2, str(lines))


def check_output_dtype(test):
    values, config = random_checkpoint(test.work / "dtype")
    wide = {name: value.float() for name, value in values.items()}
    embedding, scales = "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight_scale"
    folder = test.folder(wide, config)
    report, made, written = test.quantized(folder)
    test.check("a float32 checkpoint whose config.json says bfloat16 becomes that", {value.dtype for value in made.values()} <= {torch.bfloat16, torch.int32, torch.int64},
               str({name: value.dtype for name, value in made.items() if value.dtype == torch.float32}))
    test.check("its numbers are rounded once", torch.equal(made[embedding], values[embedding]) and report["dtype"] == "bfloat16", report["dtype"])
    from_bf16 = test.quantized(test.folder(values, config))[1]
    test.check("and the output is that of the bfloat16 checkpoint", all(torch.equal(from_bf16[name], made[name]) for name in from_bf16), "it differs")
    _, made, written = test.quantized(folder, "--output-dtype", "keep")
    test.check("kept, it stays in float32", made[embedding].dtype == made[scales].dtype == torch.float32, str(made[embedding].dtype))
    _, made, written = test.quantized(folder, "--output-dtype", "float16")
    key = "dtype" if "dtype" in config else "torch_dtype"
    test.check("asked for, it is float16", made[embedding].dtype == made[scales].dtype == torch.float16 and written[key] == "float16", str(written[key]))
    wide["model.norm.weight"][3] = 1e6
    done = subprocess.run([test.build / "bin/slim", "--plugin", "rtn", "--scheme", "w4a16", "--group-size", "32", "--model", test.folder(wide, config),
                           "--output", test.work / "over", "--output-dtype", "float16"], capture_output=True, text=True)
    test.check("a number that float16 cannot hold is named", done.returncode != 0 and "model.norm.weight" in done.stderr and "float16 cannot" in done.stderr, done.stderr)
    said = {**config, "torch_dtype": "float32"}
    said.pop("dtype", None)
    folder = test.folder({name: value.float() for name, value in values.items()}, said)
    text = slim(test.build, "plan", "--plugin", "rtn", "--scheme", "w4a16", "--group-size", "32", "--model", folder)
    test.check("an output that stays in float32 is told", "stay in float32" in text, text[-600:])


def check_windows(test):
    from transformers import MistralConfig
    for what, kind, more in (("by layer", Qwen3Config, dict(use_sliding_window=True, sliding_window=6, max_window_layers=1)),
                             ("everywhere", MistralConfig, dict(sliding_window=6))):
        folder = test.work / ("windows " + what)
        random_checkpoint(folder, kind, **more)
        test.same_logits(f"a sliding window {what}", folder, logits_of_transformers(folder))
    _, config = load(folder)
    config |= {"model_type": "qwen3", "layer_types": ["sliding_attention", "full_attention"], "use_sliding_window": False}
    (folder / "config.json").write_text(json.dumps(config))
    test.refused("layers that slide without a window", folder, "layer_types", "use_sliding_window")


def main():
    with tempfile.TemporaryDirectory() as name:
        test = Layouts(build_folder(), Path(name))
        for part in (check_tied_heads, check_beside, check_heads_and_prefixes, check_packed_experts, check_fp8_sources, check_fp8_output,
                     check_stale_and_foreign, check_other_folders, check_group_sizes, check_output_dtype, check_windows):
            part(test)
        return test.exit_code()


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
