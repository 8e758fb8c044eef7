"""What the oracle tests of models with images share: random samples, logits, answers and processors of the native code against
transformers."""
import json
import os
import tempfile
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor

from kit import SAMPLES, build_folder, exit_code, native_logits, run, tensors_of, unpacked

os.environ.setdefault("SLIM_PRODUCTS", "native")  # LibTorch's own products of bf16, as transformers computes them; test_products.py has slim's
IMAGE, VIDEO, START, END = 90, 91, 92, 93
TEXT = 88  # ids below are text
SPECIAL_TOKENS = dict(image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END)
MAX_DIFFERENCE = 1e-4  # fp32 logits
MAX_KL = 1e-4          # bf16 logits
SEQUENCE_KEYS = ("input_ids", "mm_token_type_ids")  # of a sample: one sequence, without a batch dimension


def randomize(model):
    """Weights far from the small ones of initialisation, so that logits depend on every part of a model."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() < 2:
                weight.add_(0.2 * torch.randn_like(weight))
            else:
                inputs = weight[0].numel() if weight.dim() != 3 else weight.shape[-1]  # 3: packed experts
                weight.copy_(torch.randn_like(weight) * 1.2 / inputs**0.5)
    return model


def make_sample(config, grids, videos, generator, split_frames):
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
            for _ in range(t if split_frames else 1):
                count = h * w if split_frames else t * h * w
                ids += [START] + [token] * count + [END] + words(2)
                kinds += [0] + [kind] * count + [0] * 3
            patches += t * h * w * merge * merge
        if list_:
            name = "image_grid_thw" if kind == 1 else "video_grid_thw"
            sample["pixel_values" + key] = torch.randn(patches, features, generator=generator)
            sample[name] = torch.tensor([[t, h * merge, w * merge] for t, h, w in list_])
    sample["input_ids"] = torch.tensor(ids)
    sample["mm_token_type_ids"] = torch.tensor(kinds, dtype=torch.int32)
    return sample


def batched(sample):
    return {k: v[None] if k in SEQUENCE_KEYS else v for k, v in sample.items()}


def expected_logits(model, sample):
    """One sequence at a time: a batch with padding rounds differently."""
    model.model.rope_deltas = None
    with torch.no_grad():
        return model(**batched(sample), use_cache=False).logits[0].float()


def divergence(expected, found):
    p, q = expected.double().log_softmax(-1), found.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean().item()


def check(name, expected, found, dtype):
    difference = max((e - f).abs().max().item() for e, f in zip(expected, found))
    kl = max(divergence(e, f) for e, f in zip(expected, found))
    spread = expected[0].std().item()
    print(f"{name:32} {dtype:8} difference {difference:.2e}  kl {kl:.2e}  (logits spread {spread:.2f})", flush=True)
    good = difference <= MAX_DIFFERENCE if dtype == "float32" else kl <= MAX_KL
    return good and spread > 0.01


def check_random_model(build, name, model, samples, change_folder=lambda folder: None):
    """A random model through a checkpoint. samples[0] has no image. change_folder: what the native code reads instead of what
    transformers wrote."""
    good = True
    for dtype in ("float32", "bfloat16"):
        model = model.to(getattr(torch, dtype))
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            model.save_pretrained(folder, max_shard_size="64KB")
            # Loaded anew: model.to() has rounded the rotary frequencies too, which no user of a checkpoint sees.
            loaded = type(model).from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
            expected = [expected_logits(loaded, s) for s in samples]
            change_folder(folder)
            good &= check(name, expected, native_logits(build, folder, samples, dtype), dtype)
            if dtype == "float32":
                alone = native_logits(build, folder, samples[:1], dtype)
                good &= check(name + ", no image in batch", expected[:1], alone, dtype)
    return good


def rename_tensors(folder, rename):
    """Rewrites a checkpoint as one file, every tensor through rename(name, value), which yields names and values."""
    tensors = {}
    for shard in sorted(folder.glob("*.safetensors")):
        for name, value in load_file(shard).items():
            tensors.update(rename(name, value))
        shard.unlink()
    for index in folder.glob("*.index.json"):
        index.unlink()
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"})


# ---- the trained toys -----------------------------------------------------------------------------------------------------


def chat_sample(processor, messages, answer, root):
    """What transformers' processor makes of a chat; without the last turn if it is to be generated. Paths are relative to root."""
    images, videos = [], []
    load = lambda path: Image.open(root / path).convert("RGB")
    messages = messages if answer else messages[:-1]
    for message in messages:
        for part in message["content"] if isinstance(message["content"], list) else []:
            if part["type"] == "image":
                images.append(load(part["image"]))
            elif part["type"] == "video":
                videos.append([load(path) for path in part["video"]])
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=not answer)
    options = dict(do_sample_frames=False, cap_pixels_per_frame=False) if videos else {}
    inputs = processor(text=[text], images=images or None, videos=videos or None, return_tensors="pt", **options)
    names = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw", "second_per_grid_ts")
    sample = {k: v for k, v in inputs.items() if k in names}
    sample.update({k: inputs[k][0] for k in SEQUENCE_KEYS})
    return sample


def eval_chats(count):
    lines = (SAMPLES / "eval.jsonl").read_text().splitlines()[:count]
    return [json.loads(line)["messages"] for line in lines]


def toy_samples(processor, chats, answer=True, root=SAMPLES):
    return [chat_sample(processor, messages, answer, root) for messages in chats]


def check_toy(build, toy, model_class, processor):
    samples = toy_samples(processor, eval_chats(12))
    good = True
    for dtype in ("float32", "bfloat16"):
        model = model_class.from_pretrained(toy, dtype=getattr(torch, dtype)).eval()
        expected = [expected_logits(model, s) for s in samples]
        good &= check("trained toy", expected, native_logits(build, toy, samples, dtype), dtype)
    return good


def check_generation(build, toy, model_class, processor):
    """Greedy answers: every token that transformers generates with its cache is the native argmax after those before it."""
    samples = toy_samples(processor, eval_chats(8), answer=False)
    model = model_class.from_pretrained(toy, dtype=torch.float32).eval()
    answers = []
    for sample in samples:
        prompt = sample["input_ids"]
        with torch.no_grad():
            whole = model.generate(**batched(sample), max_new_tokens=12, do_sample=False)[0]
        answers.append(whole[len(prompt):])
        sample["input_ids"] = whole[:-1].clone()
    logits = native_logits(build, toy, samples, "float32")
    equal = [torch.equal(l[-len(a):].argmax(-1), a) for l, a in zip(logits, answers)]
    print(f"generated answers equal: {sum(equal)} of {len(equal)}: {[processor.decode(a) for a in answers[:3]]}", flush=True)
    return all(equal)


def encode(build, toy, data, scratch, max_tokens=0):
    """What the native processor makes of the data, and a line about each sample."""
    output = Path(scratch) / "encoded"
    report = run(build / "bin/slim_encode", toy, data, output, max_tokens)
    return tensors_of(output), report.splitlines()


def equal_samples(samples, found):
    """Ids and grids equal, pixels to rounding; nothing more and nothing less."""
    good = True
    for i, sample in enumerate(samples):
        good &= {k for k in sample if k != "mm_token_type_ids"} == {k.partition(".")[2] for k in found if k.startswith(f"{i}.")}
        for key, value in sample.items():
            other = found.get(f"{i}.{key}")
            if other is None:
                good &= key == "mm_token_type_ids"
            elif value.is_floating_point():
                good &= value.shape == other.shape and (value - other).abs().max().item() <= 1e-6
            else:
                good &= torch.equal(value, other)
    return good


def check_processor(build, toy, processor):
    """Token ids, grids and pixels of the native processor against transformers'; then the limits of max_tokens."""
    chats, image = eval_chats(10**6), processor.image_token_id
    merge = processor.image_processor.merge_size**2
    with tempfile.TemporaryDirectory() as scratch:
        found, report = encode(build, toy, SAMPLES / "eval.jsonl", scratch)
        samples = toy_samples(processor, chats)
        good, images = equal_samples(samples, found), sum("pixel_values" in s for s in samples)
        print(f"processor: {len(chats)} chats, {images} with images, {'equal' if good else 'DIFFERENT'}; {report[-2:]}", flush=True)
        good &= images > 0 and report[-2:] == ["stop 1794", "stop 1792"]

        shorter = max(8 + len(s["input_ids"][s["input_ids"] != image]) // 2 for s in samples[:4])
        limited, report = encode(build, toy, SAMPLES / "eval.jsonl", scratch, shorter)
        for i in range(len(chats)):
            ids, full = limited[f"{i}.input_ids"], found[f"{i}.input_ids"]
            text, image_tokens, smaller = map(int, report[i].split())
            good &= len(ids) == text + image_tokens == min(shorter, len(full)) or bool(smaller)
            good &= len(ids) <= shorter and int((ids == image).sum()) == image_tokens
            if f"{i}.image_grid_thw" in limited:
                good &= int(limited[f"{i}.image_grid_thw"].prod(1).sum()) == image_tokens * merge
                good &= limited[f"{i}.pixel_values"].shape[0] == image_tokens * merge
        shrunk = sum(line.endswith(" 1") for line in report[:len(chats)])
        error = run(build / "bin/slim_encode", toy, SAMPLES / "eval.jsonl", Path(scratch) / "none", 4, fails=1)
        print(f"max_tokens {shorter}: {shrunk} downscaled; max_tokens 4: {error.strip()}", flush=True)
        return good and shrunk > 0 and "do not fit into 4 tokens" in error


def video_chats(folder):
    """Chats with an odd number of frames, two videos, and a video beside an image. Writes the frames as images into `folder`."""
    pictures = sorted((SAMPLES / "eval_images").iterdir())

    def video(frames, first, width, height):
        names = [f"{first + i}-{width}x{height}.png" for i in range(frames)]
        for i, name in enumerate(names):
            Image.open(pictures[first + i]).convert("RGB").resize((width, height)).save(folder / name)
        return {"type": "video", "video": names}

    text = lambda words: {"type": "text", "text": words}
    contents = [
        [video(5, 0, 80, 60), text("What moves?")],
        [text("Compare "), video(2, 5, 97, 41), text(" with "), video(7, 8, 50, 130)],
        [{"type": "image", "image": "0-80x60.png"}, video(3, 20, 64, 64), text("Is the picture in the video?")],
        [text("A long one: "), video(20, 30, 48, 33), {"type": "image", "image": "5-97x41.png"}],
    ]
    return [[{"role": "user", "content": content}, {"role": "assistant", "content": "Yes."}] for content in contents]


def check_videos(build, toy, processor):
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        data.mkdir()
        chats = video_chats(data)
        (data / "videos.jsonl").write_text("".join(json.dumps({"messages": m}) + "\n" for m in chats))
        samples = toy_samples(processor, chats, root=data)
        found, report = encode(build, toy, data / "videos.jsonl", scratch)
        good = equal_samples(samples, found)
        grids = [s["video_grid_thw"].tolist() for s in samples]
        print(f"videos: {len(samples)} chats, grids {grids}, {'equal' if good else 'DIFFERENT'}", flush=True)
        limited, report = encode(build, toy, data / "videos.jsonl", scratch, 150)
        lengths = [len(limited[f"{i}.input_ids"]) for i in range(len(samples))]
        print(f"videos within 150 tokens: {lengths}, downscaled {[line[-1] for line in report[:len(samples)]]}", flush=True)
        return good and max(lengths) <= 150


def random_models_agree(build, models, make_model, samples_of, layout_of=lambda shape, model: lambda folder: None):
    """models: shapes by name. samples_of(shape, model, generator). layout_of: what changes the names of a saved checkpoint."""
    good = True
    for seed, (name, shape) in enumerate(models.items()):
        model = make_model(shape, seed)
        samples = samples_of(shape, model, torch.Generator().manual_seed(seed))
        good &= check_random_model(build, name, model, samples, layout_of(shape, model))
    return good


def main(model_class, toy, check_random_models):
    """A test's main program: random models, then all of the trained toy."""
    build = build_folder()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    toy = unpacked(build, toy)
    processor = AutoProcessor.from_pretrained(toy)
    good = check_random_models(build)
    good &= check_toy(build, toy, model_class, processor)
    good &= check_generation(build, toy, model_class, processor)
    good &= check_processor(build, toy, processor)
    good &= check_videos(build, toy, processor)
    return exit_code(good)
