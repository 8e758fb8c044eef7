#!/usr/bin/env python3
"""A run on a device: the stand-in of tests/standin_device, opened by the npu backend as torch_npu would be, gives the bytes of the CPU
for every algorithm, and takes no more of its memory than `slim plan` says; evaluation gives the same figures."""
from device_runs import CALIB, CHAIN, QUICK, QUICK_GPTQ, Device, need, on_cpu, same
from kit import DATA, SAMPLES, run, run_checks, unpacked

TEXT = ["--calib", SAMPLES / "calib_text.txt", "--num-samples", 2, "--batch-size", 1, "--max-seq-length", 64]
QWEN, MOE = "toy-qwen3vl", "toy-hunyuan-moe"
RECIPES = {
    "awq then gptq": (QWEN, *CHAIN),
    "awq by replay": (QWEN, "--plugin", "awq", *QUICK, "--set", "awq.objective=replay", *CALIB),
    "gptq of experts": (MOE, "--plugin", "gptq", *QUICK_GPTQ, *TEXT),
    "gptq by salience": (QWEN, "--plugin", "gptq", "--set", "gptq.desc_act=true", "--set", "gptq.static_groups=false", "--format", "gptq", *CALIB),
    "fp8 static and a cache": (QWEN, "--plugin", "fp8", "--kv-cache", "fp8", *CALIB),
    "smoothed int8": (QWEN, "--plugin", "smooth,int8", "--scheme", "w8a8_static", *CALIB),
    "sparse": (QWEN, "--plugin", "sparse", *CALIB),
    "rtn": (MOE, "--plugin", "rtn", "--scheme", "w4a16"),
}


def pipelines(checks, build, work):
    device = Device(build, work)
    for name, (toy, *words) in RECIPES.items():
        slug = name.replace(" ", "-")
        model = ["--model", unpacked(build, toy)]
        ours, theirs = work / f"{slug}-npu", work / f"{slug}-cpu"
        report, counts = device.slim(*words, *model, "--output", ours)
        on_cpu(build, *words, *model, "--output", theirs)
        same(checks, name, ours, theirs)
        checks.expect(report["backend"] == "npu", f"{name}: the report names the backend", report.get("backend"))
        checks.expect(counts["operators"] > 100, f"{name}: it ran on the device", counts)
        planned = need(build, *words, *model)
        checks.expect(0 < counts["peak_bytes"] <= planned["peak_memory_bytes"], f"{name}: its memory is below what was planned",
                      (counts["peak_bytes"], planned))
        checks.expect(report["peak_device_bytes"] == counts["peak_bytes"], f"{name}: the report tells the peak", report["peak_device_bytes"])


def evaluation(checks, build, work):
    words = ["eval", work / "smoothed-int8-cpu", "--reference", DATA / QWEN, "--data", SAMPLES / "eval.jsonl", "--limit", 3, "--max-new-tokens", 4]
    ours, counts = Device(build, work).slim(*words)
    theirs = on_cpu(build, *words)
    checks.expect(ours.pop("backend") == "npu" and theirs.pop("backend") == "cpu", "evaluations name their backend")
    checks.expect(ours == theirs, "evaluation: the device's figures are the CPU's", (ours, theirs))
    checks.expect(counts["operators"] > 100, "evaluation: it ran on the device", counts)


def without_device(checks, build, work):
    words = ["--plugin", "rtn", "--scheme", "w4a16", "--model", DATA / QWEN, "--output", work / "none", "--backend", "npu", "--quiet"]
    said = run(build / "bin/slim", *words, fails=True, SLIM_TORCH_NPU="/no/such/file", LD_LIBRARY_PATH="")
    checks.expect("libascendcl.so" in said and "--backend cpu" in said, "without CANN its missing library is named", said)


if __name__ == "__main__":
    raise SystemExit(run_checks(pipelines, evaluation, without_device))
