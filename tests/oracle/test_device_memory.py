#!/usr/bin/env python3
"""A run on a device with little memory: --max-vram is kept, a limit that nothing meets is an error before any work, and where memory
runs out all the same, the rest is computed on the CPU, which the report tells, with the same bytes. Interrupted runs and kept statistics
know no device."""
from device_runs import CALIB, CHAIN, Device, need, on_cpu, same
from kit import DATA, SAMPLES, run_checks, unpacked

MODEL = ["--model", DATA / "toy-qwen3vl"]


def interrupted(checks, build, work):
    device = Device(build, work)
    words = [*CHAIN, *MODEL, "--output"]
    on_cpu(build, *words, work / "whole")
    device.slim(*words, work / "resumed", "--stop-after-blocks", 2)
    device.slim(*words, work / "resumed", "--resume")
    same(checks, "a resumed run", work / "resumed", work / "whole")
    kept = ["--plugin", "gptq", *MODEL]
    device.slim(*kept, *CALIB, "--save-statistics", work / "kept", "--output", work / "kept-npu")
    on_cpu(build, *kept, "--statistics", work / "kept", "--output", work / "kept-cpu")
    same(checks, "statistics of a device", work / "kept-npu", work / "kept-cpu")
    device.slim(*kept, "--statistics", work / "kept", "--output", work / "from-kept-npu")
    same(checks, "kept statistics on a device", work / "from-kept-npu", work / "kept-cpu")


def budgets(checks, build, work):
    device = Device(build, work)
    words = [*CHAIN, *MODEL, "--max-seq-length", 256]
    planned = need(build, *words)
    least = planned["least_memory_bytes"]
    checks.expect(least < planned["peak_memory_bytes"], "less memory is possible", planned)
    report, counts = device.slim(*words, "--max-vram", least, "--output", work / "least")
    checks.expect(counts["peak_bytes"] <= least, "the peak is below --max-vram", (counts["peak_bytes"], least))
    checks.expect("smaller batches for the device's memory" in report["notes"], "smaller batches are told", report["notes"])
    said, counts = device.slim(*words, "--max-vram", least // 2, "--output", work / "too-little", fails=True)
    checks.expect("run.max_vram" in said and "at least" in said and "--backend cpu" in said, "a limit that nothing meets is an error", said)
    checks.expect(counts["operators"] == 0 and not (work / "too-little").exists(), "and before any work", counts)


def exhausted(checks, build, work):
    """Less and less memory than a run takes: more and more is computed on the CPU, which the report tells, and the bytes are the same."""
    device = Device(build, work)
    words = [*CHAIN, *MODEL]
    words[words.index("--batch-size") + 1] = 1  # smaller batches would add in another order
    on_cpu(build, *words, "--output", work / "enough")
    peak = device.slim(*words, "--output", work / "enough-npu")[1]["peak_bytes"]
    for share in (0.4, 0.05):
        report, counts = device.slim(*words, "--kernels", "reference", "--output", work / f"share-{share}", memory=int(share * peak))
        same(checks, f"{share} of the memory", work / f"share-{share}", work / "enough")
        told = [kind for kind in report.get("notes", {}) if "out of the device's memory" in kind]
        checks.expect(counts["out_of_memory"] > 0 and told, f"{share} of the memory: it is told what was computed on the CPU", (counts, told))


def evaluated(checks, build, work):
    """Answers are the same where batches, with the keys and values that were kept, go on on the CPU."""
    device = Device(build, work)
    words = ["eval", unpacked(build, "toy-hunyuan-dense"), "--data", SAMPLES / "eval_textqa.jsonl", "--limit", 24, "--batch-size", 24]
    whole, counts = device.slim(*words)
    little, less = device.slim(*words, memory=int(0.45 * counts["peak_bytes"]))
    told = [kind for kind in little.get("notes", {}) if "out of the device's memory" in kind]
    checks.expect(less["out_of_memory"] > 0 and told, "an evaluation tells what was computed on the CPU", (less, told))
    checks.expect(whole["files"] == little["files"], "an evaluation with little memory gives the same figures", (whole["files"], little["files"]))


if __name__ == "__main__":
    raise SystemExit(run_checks(interrupted, budgets, exhausted, evaluated))
