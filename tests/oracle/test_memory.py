#!/usr/bin/env python3
"""What a run takes: bounded by the block and not by the model, foretold by `slim plan`, and never more than --max-memory.

--full: an AWQ run of 32 and of 64 blocks of 125 MB (4 and 8 GB) takes at most 1.5 GB; a checkpoint of Qwen2.5-7B's shapes (15 GB, random
weights) is quantized whole to FP8 in 2.5 GiB, and by AWQ, GPTQ and both in 4 GiB, shown on its first two blocks, under a hard limit
where the system has one. Needs 25 GB of disk in --work and an hour or more; --only names one of these cases."""
import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MEGABYTE, GIBIBYTE = 1_000_000, 2**30
SETTINGS = ("awq.grid=1", "awq.refine=0", "awq.rows=16", "awq.clip=diagonal")  # memory does not depend on how long the search is
SEVEN_BILLION = ROOT / "tests/data/configs/Qwen2.5-7B-Instruct/config.json"
LENGTH = 512  # tokens of a sample


# ---- tools ----------------------------------------------------------------------------------------------------------


def make_checkpoint(folder, *arguments):
    command = [sys.executable, ROOT / "tests/tools/make_checkpoint.py", folder, "--like", ROOT / "tests/data/toy-qwen3vl", *arguments]
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
    return folder


def write_texts(path, samples):
    """Samples of more than LENGTH tokens."""
    state = 1
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(samples):
            words = []
            for _ in range(LENGTH):
                state = state * 6364136223846793005 % 2**64
                words.append("abcdefghijklmnopqrstuvwxyz"[state >> 59 if state >> 59 < 26 else 0] * (1 + (state >> 50) % 3) + "eist"[state >> 62])
            file.write(json.dumps({"text": " ".join(words)}) + "\n")
    return path


@contextlib.contextmanager
def hard_limit(limit):
    """Yields a function for Popen's preexec_fn that no memory above `limit` will be had, or None where only root or nobody can do so."""
    for root, key in ((Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"), (Path("/sys/fs/cgroup"), "memory.max")):
        group = root / f"slim-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / key).write_text(str(limit))
            yield lambda: (group / "cgroup.procs").write_text(str(os.getpid()))
            return
        except FileNotFoundError:
            continue
        finally:
            group.rmdir()
    yield None


def words_of(*words):
    return [str(word) for word in words]


def run_slim(build, *arguments, limit=None):
    """The finished process; killed by the system if it takes more than `limit`."""
    with hard_limit(limit) if limit else contextlib.nullcontext() as enter:
        if limit and enter is None:
            print("no hard limit here: only the peak is checked")
        return subprocess.run(words_of(build / "bin/slim", *arguments), capture_output=True, text=True, preexec_fn=enter)


def report_of(result):
    if result.returncode != 0:
        sys.exit(f"exit code {result.returncode}: {result.stderr}")
    return json.loads(result.stdout)


def check_plan(name, plan, report, limit=None):
    predicted, peak = plan["peak_memory_bytes"], report["peak_rss_bytes"]
    print(f"{name}: peak {peak / MEGABYTE:.0f} MB, planned {predicted / MEGABYTE:.0f} MB ({predicted / peak - 1:+.0%})"
          + (f", {report['seconds']:.0f} s" if "seconds" in report else ""), flush=True)
    assert abs(predicted - peak) < 0.25 * peak, f"{name}: planned {predicted} bytes, the peak was {peak}"
    assert limit is None or peak <= limit, f"{name}: {peak} bytes, allowed {limit}"


# ---- the block, not the model ---------------------------------------------------------------------------------------


def peak(build, work, blocks, block_megabytes, dense):
    model = make_checkpoint(f"{work}/model-{blocks}", "--blocks", blocks, "--bytes", f"{blocks * block_megabytes}MB")
    output = f"{work}/output-{blocks}"
    settings = [] if dense else [word for setting in SETTINGS for word in ("--set", setting)]
    report = report_of(run_slim(build, "--plugin", "awq", "--model", model, "--calib", ROOT / "tests/data/samples/calib.jsonl",
                                "--num-samples", 16, "--output", output, "--json", "--quiet", *settings))
    shutil.rmtree(model)
    shutil.rmtree(output)
    print(f"{blocks} blocks of {block_megabytes} MB: peak {report['peak_rss_bytes'] / MEGABYTE:.0f} MB, {report['seconds']:.0f} s", flush=True)
    return report["peak_rss_bytes"]


def check_number_of_blocks(build, work, blocks, block_megabytes, dense, limit=None):
    once, twice = (peak(build, work, count, block_megabytes, dense) for count in (blocks, 2 * blocks))
    assert abs(twice - once) < 0.1 * once, f"twice the blocks changed the peak from {once} to {twice} bytes"
    assert limit is None or max(once, twice) <= limit, f"{once} and {twice} bytes at the peak, allowed {limit}"


# ---- what the plan says ---------------------------------------------------------------------------------------------


def shapes(work, hidden, inner, heads, vocabulary):
    config = json.loads(SEVEN_BILLION.read_text())
    config.update(hidden_size=hidden, intermediate_size=inner, num_attention_heads=heads, num_key_value_heads=heads // 2, vocab_size=vocabulary)
    path = Path(work) / f"shapes-{hidden}-{inner}.json"
    path.write_text(json.dumps(config))
    return path


def calibrated(plugin, samples, texts):
    if plugin == "fp8":
        return ["--plugin", plugin, "--scheme", "fp8_dynamic"]
    words = ["--plugin", plugin, "--calib", texts, "--num-samples", samples, "--max-seq-length", LENGTH]
    return words + [word for setting in SETTINGS if "awq" in plugin for word in ("--set", setting)]


def check_predictions(build, work):
    """The plan is right about models of other shapes and batches: wide and narrow, one sample or all at a time, and with a large head."""
    texts = write_texts(f"{work}/texts.jsonl", 12)
    # With few blocks it is chance how much of one is left when the next is read.
    cases = (("fp8", 2048, 8192, 1, 6), ("gptq", 512, 4608, 8, 2), ("awq", 512, 4608, 1, 2), ("awq,gptq", 1024, 3072, 4, 2),
             ("gptq", 1536, 1536, 12, 2), ("awq", 1536, 1536, 12, 2), ("gptq", 512, 4608, 12, 2))
    for plugin, hidden, inner, batch, blocks in cases:
        model = make_checkpoint(f"{work}/model", "--shapes", shapes(work, hidden, inner, hidden // 64, 20000), "--blocks", blocks)
        arguments = ["--model", model, "--batch-size", batch, "--json", *calibrated(plugin, 12, texts)]
        plan = report_of(run_slim(build, "plan", *arguments))
        report = report_of(run_slim(build, *arguments, "--output", f"{work}/output", "--quiet"))
        check_plan(f"{plugin}, hidden size {hidden}, MLP {inner}, {batch} at a time", plan, report)
        shutil.rmtree(f"{work}/output")
        shutil.rmtree(model)


def check_budget(build, work):
    """A budget below the least is refused before any work, with the least; with that the run goes through, and keeps it."""
    texts = write_texts(f"{work}/texts.jsonl", 12)
    model = make_checkpoint(f"{work}/model", "--shapes", shapes(work, 512, 4608, 8, 20000), "--blocks", 2)
    output = Path(work) / "output"
    arguments = ["--model", model, "--json", *calibrated("gptq", 12, texts)]
    least = report_of(run_slim(build, "plan", *arguments))["least_memory_bytes"]
    refused = run_slim(build, *arguments, "--output", output, "--quiet", "--max-memory", least - 1)
    assert refused.returncode != 0 and not output.exists() and not output.with_name("output.partial").exists(), refused
    assert (f"{least / 1e9:.2f} GB" if least >= 1e9 else f"{least / 1e6:.2f} MB") in refused.stderr, refused.stderr
    kept = report_of(run_slim(build, *arguments, "--output", output, "--quiet", "--max-memory", least, "--batch-size", 1, limit=least))
    print(f"least {least / MEGABYTE:.0f} MB: peak {kept['peak_rss_bytes'] / MEGABYTE:.0f} MB")
    assert kept["peak_rss_bytes"] <= least, f"{kept['peak_rss_bytes']} bytes, promised {least}"
    shutil.rmtree(model)
    shutil.rmtree(output)


# ---- a 7B model ------------------------------------------------------------------------------------------------------


def check_seven_billion(build, work, plugins):
    model = make_checkpoint(f"{work}/model-7b", "--shapes", SEVEN_BILLION)
    texts = write_texts(f"{work}/texts.jsonl", 64)
    output = Path(work) / "output-7b"
    for plugin in plugins:
        limit = int((2.5 if plugin == "fp8" else 4) * GIBIBYTE)
        words = {"fp8": ["--plugin", "fp8", "--scheme", "fp8_dynamic"]}.get(
            plugin, ["--plugin", plugin, "--calib", texts, "--num-samples", 64, "--max-seq-length", LENGTH])
        if "awq" in plugin:
            words += [word for setting in SETTINGS[:3] for word in ("--set", setting)]
        arguments = ["--model", model, "--max-memory", limit, "--json", *words]
        plan = report_of(run_slim(build, "plan", *arguments))
        part = [] if plugin == "fp8" else ["--stop-after-blocks", 2]
        report = report_of(run_slim(build, *arguments, *part, "--output", output, "--quiet", limit=limit))
        check_plan(f"7B, {plugin}", plan, report, limit)
        for folder in (output, output.with_name(output.name + ".partial")):
            shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(model)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", help="of --full: blocks, or plugins of the 7B model by semicolon: fp8;gptq;awq,gptq")
    parser.add_argument("--default-search", action="store_true", help="AWQ's own settings instead of the shortest search")
    parser.add_argument("--work", help="a folder with room for the checkpoints; else that of temporary files")
    arguments = parser.parse_args()
    build = arguments.build.resolve()
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        if not arguments.full:
            check_number_of_blocks(build, work, 6, 32, arguments.default_search)
            check_predictions(build, work)
            check_budget(build, work)
            return
        if arguments.only in (None, "blocks"):
            check_number_of_blocks(build, work, 32, 125, arguments.default_search, 1500 * MEGABYTE)
        if arguments.only != "blocks":
            check_seven_billion(build, work, (arguments.only or "fp8;gptq;awq;awq,gptq").split(";"))


main()
