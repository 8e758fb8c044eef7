"""Qwen3-VL's native forward pass against transformers: random tiny models of many shapes, the trained toy, generation."""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

ROOT = Path(__file__).resolve().parents[2]
TOY = ROOT / "tests" / "data" / "toy-qwen3vl"
IMAGE, VIDEO, START, END = 90, 91, 92, 93
TEXT = 88  # ids below are text
MAX_DIFFERENCE = 1e-4  # fp32 logits
MAX_KL = 1e-4          # bf16 logits

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
    """A random model whose logits depend on every part of it: weights far from the small ones of initialisation."""
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
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END,
        tie_word_embeddings=m["tied"])
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() < 2:
                weight.add_(0.2 * torch.randn_like(weight))
            else:
                weight.copy_(torch.randn_like(weight) * 1.2 / weight[0].numel() ** 0.5)
    return model


def make_sample(config, grids, videos, generator):
    """Text of random ids around images and videos of the given grids (t, h, w in merged patches)."""
    vision = config.vision_config
    merge = vision.spatial_merge_size
    features = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    words = lambda n: torch.randint(0, TEXT, (n,), generator=generator).tolist()
    ids, kinds = words(4), [0] * 4
    sample = {}
    for key, token, kind, list_ in (("", IMAGE, 1, grids), ("_videos", VIDEO, 2, videos)):
        patches = 0
        for t, h, w in list_:
            for _ in range(t):
                middle = [START] + [token] * (h * w) + [END] + words(2)
                ids += middle
                kinds += [0] + [kind] * (h * w) + [0] * 3
            patches += t * h * w * merge * merge
        if list_:
            name = "image_grid_thw" if kind == 1 else "video_grid_thw"
            sample["pixel_values" + key] = torch.randn(patches, features, generator=generator)
            sample[name] = torch.tensor([[t, h * merge, w * merge] for t, h, w in list_])
    sample["input_ids"] = torch.tensor(ids)
    sample["mm_token_type_ids"] = torch.tensor(kinds, dtype=torch.int32)
    return sample


def expected_logits(model, sample):
    """One sequence at a time: a batch with padding rounds differently."""
    inputs = {k: v for k, v in sample.items()}
    for key in ("input_ids", "mm_token_type_ids"):
        inputs[key] = inputs[key][None]
    model.model.rope_deltas = None
    with torch.no_grad():
        return model(**inputs, use_cache=False).logits[0].float()


def native_logits(build, folder, samples, dtype, scratch):
    data = Path(scratch) / "samples"
    data.mkdir(exist_ok=True)
    tensors = {f"{i}.{k}": v.contiguous() for i, s in enumerate(samples) for k, v in s.items() if k != "mm_token_type_ids"}
    save_file(tensors, data / "model.safetensors")
    (data / "config.json").write_text("{}")
    output = Path(scratch) / "logits"
    tool = Path(build) / "bin" / "slim_logits"
    done = subprocess.run([tool, folder, data, output, dtype, "qwen3vl"], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"slim_logits failed: {done.stderr}")
    logits = load_file(output / "model.safetensors")
    return [logits[f"{i}.logits"] for i in range(len(samples))]


def divergence(expected, found):
    p, q = expected.double().log_softmax(-1), found.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean().item()


def check(name, expected, found, dtype):
    difference = max((e - f).abs().max().item() for e, f in zip(expected, found))
    kl = max(divergence(e, f) for e, f in zip(expected, found))
    spread = expected[0].std().item()
    print(f"{name:28} {dtype:8} difference {difference:.2e}  kl {kl:.2e}  (logits spread {spread:.2f})", flush=True)
    good = difference <= MAX_DIFFERENCE if dtype == "float32" else kl <= MAX_KL
    return good and spread > 0.01


def check_random_models(build):
    good = True
    for seed, (name, shape) in enumerate(MODELS.items()):
        generator = torch.Generator().manual_seed(seed)
        model = make_model(shape, seed)
        layouts = [([], []), ([(1, 2, 3)], []), ([(1, 1, 1), (1, 4, 2), (1, 3, 5)], []), ([(1, 5, 1)], [(2, 2, 2)])]
        samples = [make_sample(model.config, g, v, generator) for g, v in layouts]
        for dtype in ("float32", "bfloat16"):
            model = model.to(getattr(torch, dtype))
            with tempfile.TemporaryDirectory() as scratch:
                model.save_pretrained(Path(scratch) / "model", max_shard_size="64KB")
                # Loaded anew: model.to() has rounded the rotary frequencies too, which no user of a checkpoint sees.
                loaded = Qwen3VLForConditionalGeneration.from_pretrained(Path(scratch) / "model", dtype=getattr(torch, dtype)).eval()
                expected = [expected_logits(loaded, s) for s in samples]
                found = native_logits(build, Path(scratch) / "model", samples, dtype, scratch)
                good &= check(name, expected, found, dtype)
                if dtype == "float32":
                    alone = native_logits(build, Path(scratch) / "model", samples[:1], dtype, scratch)
                    good &= check(name + ", no image in batch", expected[:1], alone, dtype)
    return good


def toy_samples(processor, lines, answer=True):
    """What transformers' processor makes of chats; without the last turn if it is to be generated."""
    folder = ROOT / "tests" / "data" / "samples"
    samples = []
    for line in lines:
        messages, images = json.loads(line)["messages"], []
        messages = messages if answer else messages[:-1]
        for message in messages:
            for part in message["content"] if isinstance(message["content"], list) else []:
                if part["type"] == "image":
                    images.append(Image.open(folder / part["image"]).convert("RGB"))
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=not answer)
        inputs = processor(text=[text], images=images or None, return_tensors="pt")
        sample = {k: v for k, v in inputs.items() if k in ("pixel_values", "image_grid_thw")}
        sample["input_ids"] = inputs["input_ids"][0]
        sample["mm_token_type_ids"] = inputs["mm_token_type_ids"][0]
        samples.append(sample)
    return samples


def eval_lines(count):
    return (ROOT / "tests" / "data" / "samples" / "eval.jsonl").read_text().splitlines()[:count]


def check_toy(build, processor):
    samples = toy_samples(processor, eval_lines(12))
    good = True
    for dtype in ("float32", "bfloat16"):
        model = Qwen3VLForConditionalGeneration.from_pretrained(TOY, dtype=getattr(torch, dtype)).eval()
        expected = [expected_logits(model, s) for s in samples]
        with tempfile.TemporaryDirectory() as scratch:
            good &= check("trained toy", expected, native_logits(build, TOY, samples, dtype, scratch), dtype)
    return good


def check_generation(build, processor):
    """Greedy answers: every token that transformers generates with its cache is the native argmax after those before it."""
    samples = toy_samples(processor, eval_lines(8), answer=False)
    model = Qwen3VLForConditionalGeneration.from_pretrained(TOY, dtype=torch.float32).eval()
    answers = []
    for sample in samples:
        prompt = sample["input_ids"]
        inputs = {k: v[None] if k in ("input_ids", "mm_token_type_ids") else v for k, v in sample.items()}
        with torch.no_grad():
            whole = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0]
        answers.append(whole[len(prompt):])
        sample["input_ids"] = whole[:-1].clone()
    with tempfile.TemporaryDirectory() as scratch:
        logits = native_logits(build, TOY, samples, "float32", scratch)
    equal = [torch.equal(l[-len(a):].argmax(-1), a) for l, a in zip(logits, answers)]
    print(f"generated answers equal: {sum(equal)} of {len(equal)}: {[processor.decode(a) for a in answers[:3]]}", flush=True)
    return all(equal)


def encode(build, data, scratch, max_tokens=0):
    output = Path(scratch) / "encoded"
    done = subprocess.run([Path(build) / "bin" / "slim_encode", TOY, data, output, str(max_tokens)], capture_output=True, text=True)
    if done.returncode != 0:
        return None, done.stderr
    return load_file(output / "model.safetensors"), done.stdout.splitlines()


def check_processor(build, processor):
    """Token ids, grids and pixels of the native processor against transformers'; then the limits of max_tokens."""
    data = ROOT / "tests" / "data" / "samples" / "eval.jsonl"
    lines = eval_lines(10**6)
    merge = 4
    with tempfile.TemporaryDirectory() as scratch:
        found, report = encode(build, data, scratch)
        if found is None:
            sys.exit(f"slim_encode failed: {report}")
        good, images = True, 0
        for i, sample in enumerate(toy_samples(processor, lines)):
            for key in ("input_ids", "image_grid_thw", "pixel_values"):
                if key not in sample:
                    good &= f"{i}.{key}" not in found
                elif key == "pixel_values":
                    good &= (sample[key] - found[f"{i}.{key}"]).abs().max().item() <= 1e-6
                    images += 1
                else:
                    good &= torch.equal(sample[key], found[f"{i}.{key}"])
        print(f"processor: {len(lines)} chats, {images} with images, {'equal' if good else 'DIFFERENT'}; {report[-2:]}", flush=True)
        good &= images > 0 and report[-2:] == ["stop 1794", "stop 1792"]

        shorter = 16
        limited, report = encode(build, data, scratch, shorter)
        for i in range(len(lines)):
            ids, full = limited[f"{i}.input_ids"], found[f"{i}.input_ids"]
            text, image, smaller = map(int, report[i].split())
            good &= len(ids) == text + image == min(shorter, len(full)) or bool(smaller)
            good &= len(ids) <= shorter and int((ids == 1804).sum()) == image
            if f"{i}.image_grid_thw" in limited:
                good &= int(limited[f"{i}.image_grid_thw"].prod(1).sum()) == image * merge
                good &= limited[f"{i}.pixel_values"].shape[0] == image * merge
        shrunk = sum(line.endswith(" 1") for line in report[:len(lines)])
        nothing, error = encode(build, data, scratch, 4)
        print(f"max_tokens {shorter}: {shrunk} downscaled; max_tokens 4: {error.strip()}", flush=True)
        return good and shrunk > 0 and nothing is None and "do not fit into 4 tokens" in error


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    build = parser.parse_args().build
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    processor = transformers.AutoProcessor.from_pretrained(TOY)
    good = check_random_models(build)
    good &= check_toy(build, processor)
    good &= check_generation(build, processor)
    good &= check_processor(build, processor)
    print("ok" if good else "FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
