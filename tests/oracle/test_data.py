"""Calibration data through the program: text files, limits, the report, paths that leave the folder."""
import json
import shutil
import subprocess
import sys

from data_runs import run_checks
from kit import SAMPLES, unpacked


def check_text(checks, slim):
    """Lines, whole files, and pieces of files."""
    work = slim.work
    words = "The green square is left of the red circle. "
    (work / "books").mkdir()
    (work / "books/a.txt").write_text(words * 20 + "\n" + words * 3 + "\n")
    (work / "books/b.txt").write_text(words * 6)
    size = ["--max-seq-length", 64, "--batch-size", 4]
    counts = {}
    for unit in ("lines", "file", "pieces"):
        code, report = slim.quantize(work / "books", *size, "--set", f"dataset.text={unit}")
        checks.expect(code == 0, unit, report)
        counts[unit] = [(sample["origin"], sample["text_tokens"]) for sample in report["by_sample"]]
    checks.expect([origin for origin, _ in counts["lines"]] == ["a.txt:1", "a.txt:2", "b.txt:1"], "lines", counts["lines"])
    checks.expect(counts["file"][0] == ("a.txt", 64) and [origin for origin, _ in counts["file"]] == ["a.txt", "b.txt"], "whole files", counts["file"])
    whole = {name: sum(tokens for origin, tokens in counts["pieces"] if origin.startswith(name)) for name in ("a.txt", "b.txt")}
    lengths = [slim.length((work / "books" / name).read_text()) for name in whole]
    checks.expect(list(whole.values()) == lengths and max(tokens for _, tokens in counts["pieces"]) == 64, "pieces hold every token", (whole, lengths))
    code, drawn = slim.quantize(work / "books", *size, "--set", "dataset.text=pieces", "--num-samples", 2, "--shuffle")
    checks.expect(code == 0 and drawn["samples"] == 2, "pieces drawn at random", drawn)


def check_report(checks, slim):
    """Tokens by kind and by sample; what was made smaller or dropped is named."""
    work = slim.work
    data = SAMPLES / "calib.jsonl"
    code, report = slim.quantize(data, "--num-samples", 12)
    samples = report["by_sample"]
    checks.expect(code == 0 and report["samples"] == len(samples) == 12, "as many as asked for", report)
    for kind in ("text_tokens", "image_tokens"):
        checks.expect(report[kind] == sum(sample[kind] for sample in samples) > 0, f"{kind} are the samples' sum", report)
    encoded = slim.tokens(data)
    checks.expect(all(s["text_tokens"] + s["image_tokens"] == len(encoded[f"{i}.input_ids"]) for i, s in enumerate(samples)), "tokens of each sample", samples)
    code, smaller = slim.quantize(data, "--num-samples", 12, "--max-seq-length", 24)
    named = [sample["origin"] for sample in smaller["by_sample"] if sample.get("downscaled")]
    checks.expect(code == 0 and len(named) == smaller["downscaled"] > 0, "downscaled samples are named", smaller)
    with_image = sum(s["image_tokens"] > 0 for s in samples)
    code, dropped = slim.quantize(data, "--num-samples", 12, "--max-seq-length", 4)
    checks.expect(code == 0 and len(dropped["left_out"]) == with_image and all("calib.jsonl:" in why and "do not fit into 4 tokens" in why for why in dropped["left_out"]),
                "samples whose images do not fit are dropped and named", dropped)
    code, asked = slim.quantize(SAMPLES / "calib_images", "--num-samples", 2, "--calib-prompt", "What is it?")
    longer = slim.quantize(SAMPLES / "calib_images", "--num-samples", 2, "--calib-prompt", "What is it? And why?")[1]
    checks.expect(code == 0 and longer["text_tokens"] > asked["text_tokens"] and longer["image_tokens"] == asked["image_tokens"], "--calib-prompt", (asked, longer))


def check_text_model(checks, slim):
    """A model without eyes leaves samples with images out, and says which and why."""
    folder = unpacked(slim.build, "toy-hunyuan-dense")
    with_image = [i for i, line in enumerate((SAMPLES / "calib.jsonl").read_text().splitlines()[:10], 1) if '"image"' in line]
    code, report = slim.quantize(SAMPLES / "calib.jsonl", "--num-samples", 10, model=folder)
    named = [int(why.split(":")[1]) for why in report["left_out"]]
    checks.expect(code == 0 and named == with_image and report["samples"] == 10 - len(named) and report["image_tokens"] == 0, "calibration", report)
    command = [slim.build / "bin/slim", "eval", folder, "--data", SAMPLES / "calib.jsonl", "--limit", 10, "--no-generate", "--json", "--quiet"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    left_out = json.loads(done.stdout)["files"]["calib.jsonl"]["left_out"] if done.returncode == 0 else []
    checks.expect(left_out and all("takes no images" in why for why in left_out), "evaluation", done.stderr)
    checks.expect(f"{len(left_out)} samples left out" in done.stderr, "the warning", done.stderr)


def check_outside(checks, slim):
    """No path of a data set leaves its folder unless that is allowed."""
    work = slim.work
    (work / "set").mkdir()
    shutil.copy(SAMPLES / "images/0001.png", work / "outside.png")
    (work / "set/link.png").symlink_to(work / "outside.png")
    for name in ("../outside.png", str(work / "outside.png"), "link.png", "file://" + str(work / "outside.png")):
        line = json.dumps({"question": "What is it?", "answer": "a cross", "image": name})
        (work / "set/data.jsonl").write_text('{"text": "first"}\n' + line + "\n")
        code, error = slim.quantize(work / "set/data.jsonl")
        checks.expect(code == 1 and all(word in error for word in ("data.jsonl:2: ", "outside", "--allow-outside")), f"{name} is refused", error)
    code, report = slim.quantize(work / "set/data.jsonl", "--allow-outside")
    checks.expect(code == 0 and report["image_tokens"] > 0, "allowed", report)


if __name__ == "__main__":
    sys.exit(run_checks(check_text, check_report, check_text_model, check_outside))
