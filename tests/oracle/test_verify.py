#!/usr/bin/env python3
"""`slim verify` finds what was damaged after an output was written: a bit of any file, a file or tensor too few or too many, another
shape, another configuration; with the checksums that slim writes, and, as far as it can be seen at all, without them.

    python tests/oracle/test_verify.py --build BUILD_DIR [--full]"""
import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
TOY = ROOT / "tests/data/toy-qwen3vl"
CHECKSUMS = "slim_checksums.json"
LAYER = "model.language_model.layers.1.mlp.up_proj"


class Checks:
    def __init__(self, build, work):
        self.program, self.work, self.failures, self.count = build / "bin/slim", work, [], 0

    def slim(self, *words):
        return subprocess.run([str(word) for word in (self.program, *words, "--quiet")], capture_output=True, text=True, timeout=300,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})

    def verified(self, what, folder, *options, code, says=""):
        self.count += 1
        done = self.slim("verify", folder, *options)
        lines = done.stderr.strip().splitlines()
        if done.returncode != code or (code != 0 and (len(lines) != 1 or says not in done.stderr)):
            self.failures.append(what)
            print(f"FAILED {what}: exit code {done.returncode}, expected {code}; says {done.stderr.strip()[:400]!r}, expected {says!r}", flush=True)

    def damaged(self, what, change, *options, source="whole", says="", code=3):
        """A copy of an output, changed, must be found out."""
        folder = self.work / "damaged"
        shutil.copytree(self.work / source, folder)
        change(folder)
        self.verified(what, folder, *options, code=code, says=says)
        shutil.rmtree(folder)


def shards(folder):
    return sorted(folder.glob("*.safetensors"))


def shard_of(folder, name):
    for path in shards(folder):
        with safe_open(path, "pt") as file:
            if name in file.keys():
                return path
    raise KeyError(name)


def flip(path, position, bit):
    stored = bytearray(path.read_bytes())
    stored[position] ^= 1 << bit
    path.write_bytes(stored)


def with_tensors(change):
    """Rewrites the shard that holds LAYER, with other tensors; names that are new to it are entered in the index."""
    def edit(folder):
        path = shard_of(folder, LAYER + ".weight_scale")
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}
        before = set(tensors)
        change(tensors)
        save_file(tensors, path, {"format": "pt"})
        index = folder / "model.safetensors.index.json"
        entries = json.loads(index.read_text())
        for name in before - set(tensors):
            del entries["weight_map"][name]
        entries["weight_map"].update({name: path.name for name in set(tensors) - before})
        index.write_text(json.dumps(entries))
    return edit


def with_config(change):
    def edit(folder):
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))
    return edit


def with_group(config, key, value):
    next(iter(config["quantization_config"]["config_groups"].values()))["weights"][key] = value


def check_bits(checks, rng, flips):
    """Of every file: in safetensors of headers and of tensor data alike."""
    whole = checks.work / "whole"
    for path in sorted(whole.rglob("*")):
        if not path.is_file():
            continue
        size = path.stat().st_size
        places = [rng.randrange(size) for _ in range(flips)]
        if path.suffix == ".safetensors":
            places += [0, rng.randrange(8, 8 + int.from_bytes(path.read_bytes()[:8], "little")), size - 1]
        for place in places:
            bit = rng.randrange(8)
            checks.damaged(f"bit {bit} of byte {place} of {path.name}", lambda folder: flip(folder / path.relative_to(whole), place, bit))


def check_files(checks, rng):
    whole = checks.work / "whole"
    for path in sorted(whole.rglob("*")):
        name = path.name
        if path.is_file() and name != CHECKSUMS:
            checks.damaged("no " + name, lambda folder: (folder / name).unlink(), says=name)
    weights = [path.name for path in shards(whole)]
    checks.damaged("a truncated shard", lambda folder: os.truncate(folder / weights[0], (folder / weights[0]).stat().st_size - 1), says=weights[0])
    checks.damaged("two shards exchanged", lambda folder: exchange(folder / weights[0], folder / weights[1]))
    checks.damaged("an extra tensor", with_tensors(lambda tensors: tensors.update({"model.extra": torch.ones(3)})), says="model.extra")
    checks.damaged("a tensor less", with_tensors(lambda tensors: tensors.pop(LAYER + ".weight_scale")), says=LAYER)


def exchange(one, other):
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def bare(change):
    """Outputs of other tools carry no checksums."""
    def edit(folder):
        (folder / CHECKSUMS).unlink()
        change(folder)
    return edit


def check_served(checks):
    """What decodes, and engines would refuse or take otherwise."""
    scale = LAYER + ".weight_scale"
    quantization = lambda change: bare(with_config(lambda config: change(config["quantization_config"])))
    for what, tensor in (("the embedding", "model.language_model.embed_tokens.weight"), ("the final norm", "model.language_model.norm.weight"),
                         ("the vision tower", "model.visual.blocks.0.attn.qkv"), ("the merger", "model.visual.merger.linear_fc1")):
        checks.damaged("NaN in " + what, bare(lambda folder: poke_tensor(folder, tensor + ("" if tensor.endswith(".weight") else ".weight"))), says=tensor)
    checks.damaged("scales that are all 0", bare(with_tensors(lambda tensors: tensors[scale].zero_())), says=scale)
    checks.damaged("scales in F32", bare(with_tensors(lambda tensors: tensors.update({scale: tensors[scale].float()}))), says=scale)
    checks.damaged("no status", quantization(lambda config: config.pop("quantization_status")), says="quantization_status")
    checks.damaged("another status", quantization(lambda config: config.update(quantization_status="frozen")), says="quantization_status")
    checks.damaged("another format", quantization(lambda config: config.update(format="int-quantized")), says="pack-quantized")
    checks.damaged("an empty ignore list", quantization(lambda config: config.update(ignore=[])), says="stored in float")
    checks.damaged("an ignore list with a quantized layer", quantization(lambda config: config["ignore"].append("re:.*down_proj")), says="down_proj")
    cache = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}
    checks.damaged("scales of a cache declared, and absent", quantization(lambda config: config.update(kv_cache_scheme=cache)), says="k_scale")
    checks.damaged("no architectures", bare(with_config(lambda config: config.pop("architectures"))), says="architectures")
    checks.damaged("foreign architectures", bare(with_config(lambda config: config.update(architectures=["LlamaForCausalLM"]))), says="LlamaForCausalLM")
    checks.damaged("a configuration of the processor less", bare(lambda folder: (folder / "preprocessor_config.json").unlink()), says="preprocessor_config.json")
    checks.damaged("no tokenizer", bare(lambda folder: [(folder / name).unlink(missing_ok=True) for name in ("tokenizer.json", "vocab.json", "merges.txt")]), says="tokenizer.json")


def check_other_formats(checks):
    def packed(folder, config):
        made = checks.slim("--plugin", "rtn", "--scheme", "w4a16", "--group-size", 32, "--format", folder, "--model", TOY, "--output", checks.work / folder, *config)
        assert made.returncode == 0, made.stderr
        checks.damaged(f"nothing, format {folder}", bare(lambda _: None), source=folder, code=0)
    quantization = lambda change: bare(with_config(lambda config: change(config["quantization_config"])))
    packed("gptq", ["--rule", "re:.*down_proj=none"])
    checks.damaged("gptq: layers in float that nothing names", quantization(lambda config: [config.pop(key) for key in ("dynamic", "modules_in_block_to_quantize")]),
                   source="gptq", says="stored in float")
    packed("awq", [])
    checks.damaged("awq: a tower in float that nothing names", quantization(lambda config: config.update(modules_to_not_convert=None)), source="awq", says="visual")
    checks.damaged("awq: a quantized layer named", quantization(lambda config: config["modules_to_not_convert"].append("up_proj")), source="awq", says="stored quantized")


def check_without(checks):
    """What the files themselves give away."""
    scale, packed = LAYER + ".weight_scale", LAYER + ".weight_packed"
    checks.damaged("nothing, without checksums", bare(lambda folder: None), code=0)
    weights = shards(checks.work / "whole")[0].name
    checks.damaged("a missing shard", bare(lambda folder: (folder / weights).unlink()), says=weights)
    checks.damaged("a truncated shard", bare(lambda folder: os.truncate(folder / weights, (folder / weights).stat().st_size - 1)), says=weights)
    checks.damaged("no config.json", bare(lambda folder: (folder / "config.json").unlink()), says="config.json")
    checks.damaged("an extra tensor", bare(with_tensors(lambda tensors: tensors.update({"model.language_model.layers.1.mlp.extra": torch.ones(3)}))), says="extra")
    checks.damaged("a scale less", bare(with_tensors(lambda tensors: tensors.pop(scale))), says=LAYER)
    checks.damaged("a packed weight less", bare(with_tensors(lambda tensors: tensors.pop(packed))), says=LAYER)
    checks.damaged("a scale of another shape", bare(with_tensors(lambda tensors: tensors.update({scale: tensors[scale][:, :1].clone()}))), says=LAYER)
    checks.damaged("a packed weight of another shape", bare(with_tensors(lambda tensors: tensors.update({packed: tensors[packed][:-1].clone()}))), says=LAYER)
    checks.damaged("a scale that is NaN", bare(with_tensors(lambda tensors: tensors[scale].view(-1)[0].fill_(float("nan")))), says=LAYER)
    norm = "model.language_model.layers.1.input_layernorm.weight"
    checks.damaged("a norm that is Inf", bare(lambda folder: poke_tensor(folder, norm)), says=norm)
    checks.damaged("another group size", bare(with_config(lambda config: with_group(config, "group_size", 64))), says="layers")
    checks.damaged("another number of bits", bare(with_config(lambda config: with_group(config, "num_bits", 8))), says="layers")
    checks.damaged("no quantization_config", bare(with_config(lambda config: config.pop("quantization_config"))))
    checks.damaged("another size of the model", bare(with_config(lambda config: config["text_config"].__setitem__("intermediate_size", 64))))
    checks.damaged("more blocks than there are", bare(with_config(lambda config: config["text_config"].__setitem__("num_hidden_layers", 99))))
    checks.damaged("fewer blocks than there are", bare(with_config(lambda config: config["text_config"].__setitem__("num_hidden_layers", 1))))


def poke_tensor(folder, name):
    path = shard_of(folder, name)
    stored = bytearray(path.read_bytes())
    size = 8 + int.from_bytes(stored[:8], "little")
    begin = size + json.loads(stored[8:size])[name]["data_offsets"][0]
    stored[begin:begin + 2] = b"\x80\x7f"  # Inf in bfloat16
    path.write_bytes(stored)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--full", action="store_true", help="many bits of every file")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        checks, rng = Checks(options.build, Path(name)), random.Random(options.seed)
        made = checks.slim("--plugin", "rtn", "--scheme", "w4a16", "--group-size", 32, "--model", TOY, "--max-shard-size", "2MB", "--output", checks.work / "whole")
        assert made.returncode == 0, made.stderr
        assert len(shards(checks.work / "whole")) > 1
        checks.verified("an output as it was written", checks.work / "whole", "--reference", TOY, code=0)
        check_bits(checks, rng, 20 if options.full else 1)
        check_files(checks, rng)
        check_without(checks)
        check_served(checks)
        check_other_formats(checks)
        print(f"{checks.count} checks, {len(checks.failures)} failed")
        return 1 if checks.failures else 0


sys.exit(main())
