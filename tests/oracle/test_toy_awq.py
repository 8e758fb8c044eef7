#!/usr/bin/env python3
"""The main job on the trained toy: AWQ beats rounding, transformers loads the result, and both compute the same.

Checked: KL divergence of AWQ far below rounding's on the same data; no key missing or unexpected in transformers; logits of the
compressed checkpoint there equal to slim's own dequantized forward (bf16); the same greedy answers."""
import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

ROOT = Path(__file__).resolve().parents[2]
TOY, SAMPLES = ROOT / "tests/data/toy-qwen3vl", ROOT / "tests/data/samples"
QUESTIONS = 24
LARGEST_KL = 1e-4        # mean KL between the two implementations of one checkpoint, bf16
LARGEST_SHARE = 0.33     # of rounding's KL that AWQ may keep


def slim(build, *arguments):
    result = subprocess.run([build / "bin/slim", *map(str, arguments), "--json", "--quiet"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def quantize(build, plugin, output):
    return slim(build, "--plugin", plugin, "--adapter", "qwen3vl", "--model", TOY, "--calib", SAMPLES / "calib.jsonl",
                "--scheme", "w4a16", "--output", output)


def chats():
    lines = (SAMPLES / "eval.jsonl").read_text().splitlines()[:QUESTIONS]
    return [json.loads(line)["messages"] for line in lines]


def inputs(processor, messages):
    """A question with its pictures, as transformers makes it."""
    pictures = [Image.open(SAMPLES / part["image"]).convert("RGB") for part in messages[0]["content"] if part["type"] == "image"]
    text = processor.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    return processor(text=[text], images=pictures or None, return_tensors="pt")


def native_logits(build, folder, batch, work):
    """The same token ids and pixels through slim's forward pass of the checkpoint."""
    samples, output = work / "samples", work / "logits"
    samples.mkdir(exist_ok=True)
    (samples / "config.json").write_text("{}")
    tensors = {}
    for index, item in enumerate(batch):
        tensors[f"{index}.input_ids"] = item["input_ids"][0].contiguous()
        for key in ("pixel_values", "image_grid_thw"):
            if key in item:
                tensors[f"{index}.{key}"] = item[key].contiguous()
    save_file(tensors, samples / "model.safetensors")
    subprocess.run([build / "bin/slim_logits", folder, samples, output], check=True)
    logits = load_file(output / "model.safetensors")
    return [logits[f"{index}.logits"] for index in range(len(batch))]


def check_transformers(build, folder, work, native_answers):
    model, info = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    processor = AutoProcessor.from_pretrained(folder)
    batch = [inputs(processor, messages) for messages in chats()]
    kl, same, tokens = 0.0, 0, 0
    for item, ours, answer in zip(batch, native_logits(build, folder, batch, work), native_answers):
        with torch.no_grad():
            theirs = model(**item).logits[0].float().log_softmax(-1)
            ids = model.generate(**item, max_new_tokens=24, do_sample=False)[0, item["input_ids"].shape[1]:]
        kl += (theirs.exp() * (theirs - ours.log_softmax(-1))).sum().item()
        tokens += len(theirs)
        text = processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert text == answer, f"transformers answers {text!r}, slim {answer!r}"
        same += 1
    assert kl / tokens <= LARGEST_KL, f"KL(transformers || slim) = {kl / tokens:.2e}, allowed {LARGEST_KL}"
    print(f"transformers: {len(info['missing_keys'])} keys missing, KL {kl / tokens:.2e} over {tokens} tokens, {same} answers equal")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=lambda text: Path(text).resolve(), required=True)
    build = parser.parse_args().build
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        kl = {}
        for plugin in ("rtn", "awq"):
            report = quantize(build, plugin, work / plugin)
            scores = slim(build, "eval", work / plugin, "--reference", TOY, "--data", SAMPLES, "--no-generate")
            kl[plugin] = (scores["text_kl"], scores["answers_kl"])
            print(f"{plugin}: text KL {kl[plugin][0]:.5f}, answers KL {kl[plugin][1]:.5f}, {report['bits_per_weight']:.3f} bits")
        for awq, rtn in zip(kl["awq"], kl["rtn"]):
            assert awq < LARGEST_SHARE * rtn, f"AWQ's KL {awq} is not clearly below rounding's {rtn}"
        answers = slim(build, "eval", work / "awq", "--data", SAMPLES / "eval.jsonl", "--limit", QUESTIONS)
        check_transformers(build, work / "awq", work, answers["files"]["eval.jsonl"]["answers"])


main()
