#!/usr/bin/env python3
"""Calibration that says nothing, and numbers that are none, through the program: every algorithm gives a valid checkpoint or one clear
message that names tensor and block.

    python tests/oracle/test_degenerate.py --build BUILD_DIR

The model is a generated text model of two blocks. Calibrations: a single token; the same token again and again; an embedding of zeros,
so that every activation is zero. Numbers: NaN or Inf in one weight of a layer, a norm, the embedding; a layer of zeros, of weights too
small or too large for the type of the scales; activations that overflow; NaN in kept statistics."""
import argparse
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
TOKENS = ROOT / "tests" / "data" / "toy-qwen3vl"  # its tokenizer
CONFIG = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
          "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 1856, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
          "max_position_embeddings": 512, "hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": False, "torch_dtype": "bfloat16"}
CHAINS = {"awq": ["--plugin", "awq", "--scheme", "w4a16_asym", "--group-size", 32, "--set", "awq.grid=4"],
          "gptq": ["--plugin", "gptq", "--scheme", "w4a16", "--group-size", 32],
          "int8 static": ["--plugin", "int8", "--scheme", "w8a8_static"],
          "fp8 static": ["--plugin", "fp8", "--scheme", "fp8_static"],
          "smooth": ["--plugin", "smooth,int8", "--scheme", "w8a8"],
          "sparse 2:4": ["--plugin", "sparse", "--scheme", "2:4"],
          "sparse w8a8s": ["--plugin", "sparse", "--scheme", "w8a8s"]}
DATA_FREE = {"rtn": ["--plugin", "rtn", "--scheme", "w4a16", "--group-size", 32],
             "rtn in fp16 scales": ["--plugin", "rtn", "--scheme", "w4a16", "--group-size", 32, "--format", "gptq"],
             "fp8 dynamic": ["--plugin", "fp8", "--scheme", "fp8_dynamic"],
             "fp8 block": ["--plugin", "fp8", "--scheme", "fp8_block"],
             "int8 dynamic": ["--plugin", "int8", "--scheme", "w8a8"]}
LAYER, NORM, EMBEDDING = "model.layers.1.mlp.up_proj.weight", "model.layers.1.post_attention_layernorm.weight", "model.embed_tokens.weight"


def weights():
    """Normal weights of the scale of a trained model; norms around one."""
    torch.manual_seed(0)
    hidden, inner, head, heads, vocabulary = 64, 128, 32, 2, CONFIG["vocab_size"]
    shapes = {EMBEDDING: (vocabulary, hidden), "lm_head.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    for block in range(CONFIG["num_hidden_layers"]):
        prefix = f"model.layers.{block}."
        shapes.update({prefix + "input_layernorm.weight": (hidden,), prefix + "post_attention_layernorm.weight": (hidden,),
                       prefix + "self_attn.q_norm.weight": (head,), prefix + "self_attn.k_norm.weight": (head,),
                       prefix + "self_attn.q_proj.weight": (heads * head, hidden), prefix + "self_attn.k_proj.weight": (head, hidden),
                       prefix + "self_attn.v_proj.weight": (head, hidden), prefix + "self_attn.o_proj.weight": (hidden, heads * head),
                       prefix + "mlp.gate_proj.weight": (inner, hidden), prefix + "mlp.up_proj.weight": (inner, hidden),
                       prefix + "mlp.down_proj.weight": (hidden, inner)})
    return {name: (torch.ones(shape) if len(shape) == 1 else torch.randn(shape) / shape[1] ** 0.5).bfloat16() for name, shape in shapes.items()}


def checkpoint(folder, change=lambda values: None):
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENS / name, folder / name)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    values = weights()
    change(values)
    save_file(values, folder / "model.safetensors", {"format": "pt"})
    return folder


class Checks:
    def __init__(self, build, work):
        self.program, self.work, self.failures, self.count = Path(build) / "bin" / "slim", work, [], 0

    def slim(self, *words):
        return subprocess.run([str(word) for word in (self.program, *words)], capture_output=True, text=True, timeout=300,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})

    def expect(self, good, what):
        if not good:
            self.failures.append(what)
            print("FAILED", what, flush=True)

    def quantize(self, chain, model, data, *more):
        self.count += 1
        output = self.work / f"out-{self.count}"
        samples = ["--calib", data, "--num-samples", 4, "--batch-size", 2] if data else []
        return self.slim(*{**CHAINS, **DATA_FREE}[chain], *samples, *more, "--model", model, "--output", output, "--quiet"), output

    def valid(self, name, chain, model, data):
        """Exit code 0, every number finite, scales positive, and `slim verify` agrees."""
        done, output = self.quantize(chain, model, data)
        if done.returncode != 0:
            return self.expect(False, f"{name}, {chain}: exit code {done.returncode}: {done.stderr.strip()}")
        self.sound(name, chain, output)

    def valid_or_refused(self, name, chain, model, data, says):
        """What no scale can hold may be refused, by the layer's name."""
        done, output = self.quantize(chain, model, data)
        if done.returncode == 0:
            return self.sound(name, chain, output)
        good = done.returncode == 1 and re.search(says, done.stderr) and "crash" not in done.stderr and not (output / "config.json").exists()
        self.expect(good, f"{name}, {chain}: exit code {done.returncode}: {done.stderr.strip()}")

    def sound(self, name, chain, output):
        for file in output.glob("*.safetensors"):
            for key, value in load_file(file).items():
                if value.is_floating_point():
                    self.expect(bool(value.float().isfinite().all()), f"{name}, {chain}: {key} is not finite")
                if key.endswith("_scale"):
                    self.expect(bool((value.float() > 0).all()), f"{name}, {chain}: {key} is not positive")
        verified = self.slim("verify", output)
        self.expect(verified.returncode == 0, f"{name}, {chain}: slim verify: {verified.stderr.strip()}")

    def refused(self, name, chain, model, data, says, *more):
        """One line that says all of it, and no output."""
        done, output = self.quantize(chain, model, data, *more)
        self.expect(done.returncode == 1, f"{name}, {chain}: exit code {done.returncode}: {done.stderr.strip()}")
        for pattern in says:
            self.expect(re.search(pattern, done.stderr), f"{name}, {chain}: does not say {pattern!r}: {done.stderr.strip()}")
        self.expect(not (output / "config.json").exists(), f"{name}, {chain}: left an output")


def change_layer(value):
    """Every weight of LAYER times `value`."""
    return lambda values: values[LAYER].mul_(value)


def check_sizes(checks, work, only):
    """A layer of zeros, and weights and activations near the ends of what their types hold."""
    for name, factor in (("zeros", 0.0), ("tiny weights", 1e-38), ("huge weights", 1e38)):
        model = checkpoint(work / ("layer-" + name.replace(" ", "-")), change_layer(factor))
        for chain in DATA_FREE if factor < 1e6 else [*DATA_FREE, "gptq", "awq"]:
            if only in chain:
                checks.valid_or_refused(name, chain, model, work / "text.jsonl" if chain in CHAINS else None, r"up_proj|layers\.1")
    overflow = checkpoint(work / "overflow", lambda values: (values[NORM].mul_(3e38), values[LAYER].mul_(1e3)))
    for chain in CHAINS:
        if only in chain:
            checks.refused("activations overflow", chain, overflow, work / "text.jsonl", [r"layers\.1", "NaN or Inf"])


def check_statistics(checks, work, model):
    """One number that is none in a file of kept statistics is named by its tensor."""
    samples = ["--calib", work / "text.jsonl", "--num-samples", 4]
    for chain in ("awq", "gptq"):
        kept = work / f"{chain}.safetensors"
        done = checks.slim(*CHAINS[chain], *samples, "--model", model, "--output", work / f"kept {chain}", "--save-statistics", kept, "--quiet")
        checks.expect(done.returncode == 0, f"--save-statistics: {done.stderr}")
        whole = kept.read_bytes()
        size = 8 + int.from_bytes(whole[:8], "little")
        header = json.loads(whole[8:size])
        first = {name.split("/", 2)[2]: name for name in reversed(header) if "layers.1" in name and header[name]["dtype"] in ("F32", "F64")}
        for number, name in enumerate(sorted(first.values())):
            value = struct.pack("<f" if header[name]["dtype"] == "F32" else "<d", float(("nan", "inf", "-inf")[number % 3]))
            begin = size + header[name]["data_offsets"][0]
            kept.write_bytes(whole[:begin] + value + whole[begin + len(value):])
            checks.refused("a number that is none in kept statistics", chain, model, None, [re.escape(name), "NaN|Inf"], "--statistics", kept)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        checks = Checks(args.build, work)
        data = {"one token": "a", "equal tokens": " a" * 40, "text": "the picture shows a red square, and below it 3 cats"}
        for name, text in data.items():
            (work / f"{name}.jsonl").write_text(json.dumps({"text": text}) + "\n")
        sane = checkpoint(work / "sane")
        zeros = checkpoint(work / "zeros", lambda values: values[EMBEDDING].zero_())
        cases = [("one token", sane), ("equal tokens", sane), ("text", zeros)]
        for chain in [chain for chain in CHAINS if args.only in chain]:
            for name, model in cases:
                checks.valid("zero activations" if model is zeros else name, chain, model, work / f"{name}.jsonl")

        def broken(name, tensor, value):
            def change(values):
                values[tensor].view(-1)[5 if tensor != EMBEDDING else slice(None)] = value
            return checkpoint(work / name, change)

        numbers = [("NaN in a layer", broken("nan-layer", LAYER, float("nan")), [r"layers\.1", "up_proj", "(?i)nan"]),
                   ("Inf in a layer", broken("inf-layer", LAYER, float("inf")), [r"layers\.1", "up_proj", "(?i)inf"]),
                   ("NaN in a norm", broken("nan-norm", NORM, float("nan")), [re.escape(NORM), "(?i)nan"]),
                   ("Inf in a norm", broken("inf-norm", NORM, float("inf")), [r"layers\.1", "(?i)inf"]),
                   ("NaN in the embedding", broken("nan-embedding", EMBEDDING, float("nan")), [re.escape(EMBEDDING), "(?i)nan"])]
        for number, (name, model, says) in enumerate(numbers):
            for chain in list(CHAINS)[number % 2::2]:
                if args.only in chain:
                    checks.refused(name, chain, model, work / "text.jsonl", says)
            for chain in list(DATA_FREE)[number % len(DATA_FREE):][:2]:
                if args.only in chain:
                    checks.refused(name, chain, model, None, says)
        check_sizes(checks, work, args.only)
        check_statistics(checks, work, sane)
        print(f"{checks.count} runs, {len(checks.failures)} failures")
        return 1 if checks.failures else 0


if __name__ == "__main__":
    sys.exit(main())
