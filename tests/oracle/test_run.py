#!/usr/bin/env python3
"""The run itself: rules by layer, several outputs of one calibration, kept statistics, the vision tower, scales of a key/value cache,
memory limits.

Each is compared with plain runs: a rule's layers with those of a run that has the rule's scheme alone, an output of several and one
from kept statistics with a run of its own, byte by byte; the cache's scales with the keys and values that transformers computes."""
import argparse
import hashlib
import json
import re
import subprocess
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

ROOT = Path(__file__).resolve().parents[2]
TOY, SAMPLES = ROOT / "tests/data/toy-qwen3vl", ROOT / "tests/data/samples"
LAYERS = "model.language_model.layers."
CALIB = ["--calib", SAMPLES / "calib.jsonl", "--num-samples", 8, "--batch-size", 4]
AWQ = ["--set", "awq.grid=4", "--set", "awq.refine=0", "--set", "awq.rows=16"]
KV_TEXTS, KV_TOKENS = 6, 64


class Slim:
    def __init__(self, build, work):
        self.program, self.work = build / "bin" / "slim", work

    def run(self, *words):
        return subprocess.run([self.program, *map(str, words), "--model", TOY, "--quiet", "--json"], capture_output=True, text=True, cwd=self.work)

    def works(self, *words):
        result = self.run(*words)
        assert result.returncode == 0, f"{words}: {result.stderr}"
        return json.loads(result.stdout)

    def fails(self, says, *words, code=2):
        result = self.run(*words)
        assert result.returncode == code, f"{words}: exit code {result.returncode}, expected {code}: {result.stderr}"
        assert re.search(says, result.stderr), f"{words}: does not say {says!r}: {result.stderr}"


def tensors(folder):
    found = {}
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, "pt") as file:
            found.update({name: file.get_tensor(name) for name in file.keys()})
    return found


def digests(folder):
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


def same_files(one, other):
    ours, theirs = digests(one), digests(other)
    assert ours and ours == theirs, f"{one.name} and {other.name} differ in {[n for n in ours | theirs if ours.get(n) != theirs.get(n)]}"


def check_rules(slim, work):
    rtn = ["--plugin", "rtn"]
    slim.works(*rtn, "--scheme", "w4a16", "--group-size", 64, "--output", "four")
    slim.works(*rtn, "--scheme", "w8a16", "--output", "eight")
    report = slim.works(*rtn, "--scheme", "w4a16", "--group-size", 64, "--rule", "re:.*layers\\.0\\.mlp\\.down_proj=none",
                        "--rule", "re:.*down_proj=w8a16", "--output", "mixed")
    four, eight, mixed, model = (tensors(path) for path in (work / "four", work / "eight", work / "mixed", TOY))
    counts = {"float": 0, "w8a16": 0, "w4a16": 0}
    for name in {name.rpartition(".")[0] for name in four | mixed if "_proj" in name and ".layers." in name}:
        source, scheme = (four, "w4a16")
        if name.endswith("down_proj"):
            source, scheme = (model, "float") if ".layers.0." in name else (eight, "w8a16")
        ours = {key for key in mixed if key.startswith(name + ".")}
        assert ours == {key for key in source if key.startswith(name + ".")}, name
        assert all(torch.equal(mixed[key], source[key]) for key in ours), f"{name} is not that of {scheme}"
        counts[scheme] += 1
    assert all(counts.values()), counts
    slim.works("--plugin", "awq", *AWQ, *CALIB, "--rule", "re:.*down_proj=w8a16:rtn", "--output", "awq-rtn")
    again = tensors(work / "awq-rtn")
    down = LAYERS + "1.mlp.down_proj.weight_packed"
    assert again[down].shape == eight[down].shape

    slim.fails("rule 'nothing=w8a16' matches no layer", *rtn, "--rule", "nothing=w8a16", "--output", "x")
    slim.fails("earlier rules take every layer", *rtn, "--rule", "*proj=w8a16", "--rule", "*down_proj=w4a16", "--output", "x")
    slim.fails("lm_head.*stays in float", *rtn, "--rule", "lm_head=w8a16", "--output", "x")
    slim.fails("q_proj.*k_proj|k_proj.*q_proj", *rtn, "--rule", "*k_proj=w8a16", "--output", "x")
    slim.fails("rule '.*'.*did you mean 'w8a16'", *rtn, "--rule", "*down_proj=w8a61", "--output", "x")
    slim.fails("did you mean 'rtn'", "--plugin", "rtm", "--output", "x")
    assert not (work / "x").exists()
    print(f"rules: layers by scheme {counts}")


def check_outputs(slim, work):
    (work / "several.toml").write_text(f"""
[compression]
plugin = "awq"
[compression.quantization]
name = "w4a16_asym"
[dataset]
path = "{SAMPLES / 'calib.jsonl'}"
num_samples = 8
batch_size = 4
[[output]]
path = "several-awq"
[[output]]
path = "several-rtn"
algorithm = "rtn"
scheme = "w8a8"
[[output]]
path = "several-3"
scheme = "w3a16"
group_size = 64
""")
    report = slim.works("--config", "several.toml", *AWQ)
    assert [entry["output"] for entry in report["outputs"]] == ["several-awq", "several-rtn", "several-3"]
    plan = slim.works("plan", "--config", "several.toml", *AWQ)
    assert len(plan["outputs"]) == 3
    alone = [*CALIB, *AWQ, "--set", "run.propagate=float"]
    slim.works("--plugin", "awq", "--scheme", "w4a16_asym", *alone, "--output", "alone-awq")
    slim.works("--plugin", "rtn", "--scheme", "w8a8", "--output", "alone-rtn")
    slim.works("--plugin", "awq", "--scheme", "w3a16", "--group-size", 64, *alone, "--output", "alone-3")
    for name in ("awq", "rtn", "3"):
        same_files(work / f"several-{name}", work / f"alone-{name}")
    slim.fails("quantized.*several outputs", "--config", "several.toml", "--set", "run.propagate=quantized")
    slim.fails("exclude each other", "--config", "several.toml", "--output", "x")
    print("outputs: three of one calibration equal runs of their own")


def check_statistics(slim, work):
    awq = ["--plugin", "awq", *AWQ]
    slim.works(*awq, *CALIB, "--save-statistics", "kept.safetensors", "--output", "keeping")
    same_files(work / "keeping", work / "alone-awq")
    slim.works(*awq, "--statistics", "kept.safetensors", "--output", "kept-4")
    same_files(work / "kept-4", work / "alone-awq")
    report = slim.works(*awq, "--scheme", "w3a16", "--group-size", 64, "--statistics", "kept.safetensors", *CALIB, "--output", "kept-3")
    same_files(work / "kept-3", work / "alone-3")
    assert "statistics from a file" in report["notes"], report["notes"]
    kept = tensors_of(work / "kept.safetensors")
    assert any(name.startswith(LAYERS + "0/") for name in kept), sorted(kept)[:3]

    file = ["--statistics", "kept.safetensors"]
    slim.fails("run.dtype", *awq, *file, "--dtype", "float32", "--output", "x")
    slim.fails("dataset.num_samples: 8, this run has 9", *awq, *file, "--calib", SAMPLES / "calib.jsonl", "--num-samples", 9, "--output", "x")
    slim.fails("holds no slim.channel_moments of .*key", *awq, *file, "--kv-cache", "fp8", "--output", "x")
    slim.fails("replay", *awq, *file, "--set", "awq.objective=replay", "--output", "x")
    slim.fails("holds no fingerprint", *awq, "--statistics", TOY / "model-00001-of-00003.safetensors", "--output", "x")
    slim.fails("absent.safetensors", *awq, "--statistics", "absent.safetensors", "--output", "x", code=1)
    slim.fails("collects none", "--plugin", "rtn", "--save-statistics", "none.safetensors", "--output", "x")
    slim.fails("exclude each other", *awq, *file, "--save-statistics", "none.safetensors", "--output", "x")
    left = [path.name for path in work.iterdir() if path.name.startswith(("x", "none")) or path.name.endswith(".partial")]
    assert not left, left
    print("statistics: another bit width from kept statistics equals a run of its own")


def tensors_of(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name).shape for name in file.keys()}


def check_vision(slim, work):
    """With --quant-vit what needs calibration runs through the tower too, whose merger hands on another shape than it takes."""
    linears = {name.removesuffix(".weight") for name, tensor in tensors(TOY).items()
               if ".visual." in name and name.endswith(".weight") and tensor.dim() == 2 and "pos_embed" not in name}
    assert len(linears) == 4 * 4 + 3 * 2, sorted(linears)
    for plugin, scheme, stored in (("awq", "w4a16_asym", "weight_packed"), ("gptq", "w4a16", "weight_packed"), ("sparse", "2:4+w8a8", "weight_scale"),
                                   ("smooth,int8", "w8a8_static", "input_scale")):
        output = "vision-" + plugin
        slim.works("--plugin", plugin, "--scheme", scheme, "--quant-vit", *CALIB[:-3], 4, *(AWQ if plugin == "awq" else []), "--output", output)
        found = {name.removesuffix("." + stored) for name in tensors(work / output) if ".visual." in name and name.endswith("." + stored)}
        assert found == linears, f"{plugin}: {sorted(found ^ linears)}"
        result = subprocess.run([slim.program, "verify", output, "--reference", TOY, "--quiet"], capture_output=True, text=True, cwd=work)
        assert result.returncode == 0, f"{plugin}: {result.stderr}"
    print(f"vision: all {len(linears)} layers of the tower by AWQ, GPTQ, pruning and smoothing")


def check_cache(slim, work):
    texts = [line for line in (SAMPLES / "calib_text.txt").read_text().splitlines() if line.strip()][:KV_TEXTS]
    (work / "texts.txt").write_text("\n".join(texts) + "\n")
    rtn = ["--plugin", "rtn", "--kv-cache", "fp8", "--num-samples", KV_TEXTS, "--max-seq-length", KV_TOKENS, "--dtype", "float32",
           "--set", "run.propagate=float", "--calib", "texts.txt"]
    slim.works(*rtn, "--output", "cached")
    ours = tensors(work / "cached")
    config = json.loads((work / "cached" / "config.json").read_text())
    assert config["quantization_config"]["kv_cache_scheme"]["num_bits"] == 8, config["quantization_config"]
    model, tokenizer = Qwen3VLForConditionalGeneration.from_pretrained(TOY, dtype=torch.float32), AutoTokenizer.from_pretrained(TOY)
    largest = {}
    for text in texts:
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids[:, :KV_TOKENS]
        with torch.no_grad():
            cache = model(input_ids=ids, use_cache=True).past_key_values
        for index, layer in enumerate(cache.layers):
            for letter, tensor in (("k", layer.keys), ("v", layer.values)):
                name = f"{LAYERS}{index}.self_attn.{letter}_scale"
                largest[name] = max(largest.get(name, 0.0), tensor.abs().max().item())
    stored = {name: tensor for name, tensor in ours.items() if name.endswith(("k_scale", "v_scale"))}
    assert sorted(stored) == sorted(largest), (sorted(stored)[:4], sorted(largest)[:4])
    for name, value in largest.items():
        expected = torch.tensor(value / 448).to(stored[name].dtype).float().item()
        got = stored[name].float().item()
        assert abs(got / expected - 1) < 0.008, f"{name}: {got}, transformers has {expected}"  # a step of bfloat16
    slim.works(*rtn, "--ignore", "*", "--output", "cache-alone")
    alone = tensors(work / "cache-alone")
    assert all(torch.equal(alone[name], stored[name]) for name in largest) and not any("weight_" in name for name in alone), sorted(alone)
    slim.fails("kv_cache = fp8 needs calibration data", "--plugin", "rtn", "--kv-cache", "fp8", "--output", "x")
    slim.fails("did you mean 'fp8'", "--plugin", "rtn", "--kv-cache", "fp9", "--output", "x")
    print(f"cache: {len(stored)} scales are those of transformers' keys and values")


def check_budget(slim, work):
    """A limit that is kept by files for activations, and by reading no weights ahead, changes no byte; what cannot be kept says how much would do."""
    awq = ["--plugin", "awq", *AWQ, *CALIB]
    plan = slim.works("plan", *awq)
    peak, least = plan["peak_memory_bytes"], plan["least_memory_bytes"]
    assert least < peak
    report = slim.works(*awq, "--max-memory", peak - 1, "--output", "within")
    assert "activations in files" in report["notes"], report["notes"]
    slim.works(*awq, "--output", "unlimited")
    same_files(work / "within", work / "unlimited")
    one = ["--plugin", "awq", *AWQ, *CALIB[:-1], 1]
    report = slim.works(*one, "--max-memory", least, "--output", "least")
    assert "weights not read ahead" in report["notes"], report["notes"]
    slim.works(*one, "--output", "one")
    same_files(work / "least", work / "one")
    slim.fails("with --batch-size 1 .* would do", *awq, "--max-memory", least, "--output", "x", code=1)
    slim.fails("the least that would do is", *awq, "--max-memory", least - 1, "--output", "x", code=1)
    slim.fails("the least that would do is", "plan", *awq, "--max-memory", least - 1, code=1)
    assert not (work / "x").exists()
    print(f"budget: {peak / 1e6:.0f} MB, at least {least / 1e6:.0f} MB; every file as without a limit")


def check_engine(slim, work):
    def verify(*words):
        return subprocess.run([slim.program, "verify", *map(str, words), "--quiet"], capture_output=True, text=True, cwd=work)

    slim.works("--plugin", "rtn", "--scheme", "w4a16", "--ignore", "re:.*visual.*", "--output", "engine")
    result = verify("engine", "--engine", "vllm")
    assert result.returncode == 0, result.stderr
    result = verify("engine", "--engine", "vllm", "--tp", 4)
    assert result.returncode == 3 and "groups of 128" in result.stderr and "o_proj" in result.stderr, result.stderr
    three_bits = ("--plugin", "rtn", "--scheme", "w3a16", "--format", "gptq")
    slim.works(*three_bits, "--output", "engine-3")
    result = verify("engine-3", "--engine", "vllm")
    assert result.returncode == 3 and "4 and 8 bits" in result.stderr, result.stderr
    slim.fails("4 and 8 bits", *three_bits, "--engine", "vllm", "--output", "x", code=1)
    slim.fails("4 and 8 bits", "plan", *three_bits, "--engine", "vllm", code=1)
    slim.works("--plugin", "rtn", "--scheme", "w3a16", "--engine", "vllm", "--output", "engine-3-packed")
    slim.fails("did you mean 'vllm'", *three_bits, "--engine", "vlm", "--output", "x", code=2)
    slim.fails("needs output.engine", *three_bits, "--tp", 2, "--output", "x", code=2)
    assert not (work / "x").exists()
    for words, says in ((["--engine", "vlm"], "did you mean 'vllm'"), (["--tp", 2], "--engine"), (["--engine", "vllm", "--tp", 0], "at least 1")):
        result = verify("engine", *words)
        assert result.returncode == 2 and says in result.stderr, result.stderr
    print("engine: shards that cut groups, and bits without a kernel, are told")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=lambda text: Path(text).resolve(), required=True)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        slim = Slim(parser.parse_args().build, work)
        check_rules(slim, work)
        check_outputs(slim, work)
        check_statistics(slim, work)
        check_vision(slim, work)
        check_cache(slim, work)
        check_budget(slim, work)
        check_engine(slim, work)


main()
