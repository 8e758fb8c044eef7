#!/usr/bin/env python3
"""A run on a device: the stand-in of tests/standin_device, opened by the npu backend as torch_npu would be, gives the bytes of the CPU
for every algorithm; evaluation the same figures. Its memory counts: budgets hold, and where there is too little, the run says so."""
import hashlib
import json
import os

from kit import DATA, SAMPLES, run, run_checks, unpacked

CALIB = ["--calib", SAMPLES / "calib.jsonl", "--num-samples", 4, "--batch-size", 2]
TEXT = ["--calib", SAMPLES / "calib_text.txt", "--num-samples", 4, "--batch-size", 2, "--max-seq-length", 96]
QUICK = ["--set", "awq.grid=2", "--set", "awq.refine=0", "--set", "awq.rows=8"]
QWEN, MOE = "toy-qwen3vl", "toy-hunyuan-moe"
RECIPES = {
    "awq then gptq": (QWEN, "--plugin", "awq,gptq", *QUICK, *CALIB),
    "awq by replay": (QWEN, "--plugin", "awq", *QUICK, "--set", "awq.objective=replay", *CALIB),
    "gptq of experts": (MOE, "--plugin", "gptq", *TEXT),
    "gptq by salience": (QWEN, "--plugin", "gptq", "--set", "gptq.desc_act=true", "--set", "gptq.static_groups=false", "--format", "gptq", *CALIB),
    "fp8 static and a cache": (QWEN, "--plugin", "fp8", "--kv-cache", "fp8", *CALIB),
    "smoothed int8": (QWEN, "--plugin", "smooth,int8", "--scheme", "w8a8_static", *CALIB),
    "sparse": (QWEN, "--plugin", "sparse", *CALIB),
    "rtn": (MOE, "--plugin", "rtn", "--scheme", "w4a16"),
}


class Device:
    """Runs with the stand-in where the npu backend looks for torch_npu and CANN."""

    def __init__(self, build, work):
        self.build, self.work, self.folder = build, work, build / "standin"

    def slim(self, *words, memory=None, **more):
        report = self.work / "standin.json"
        environment = {"SLIM_TORCH_NPU": str(self.folder), "SLIM_STANDIN_REPORT": str(report), "OMP_NUM_THREADS": "1",
                       "LD_LIBRARY_PATH": f"{self.folder}:{os.environ.get('LD_LIBRARY_PATH', '')}"}
        if memory:
            environment["SLIM_STANDIN_MEMORY"] = str(memory)
        said = run(self.build / "bin/slim", *words, "--backend", "npu", "--quiet", "--json", **environment, **more)
        return (said if more.get("fails") else json.loads(said)), json.loads(report.read_text())


def on_cpu(build, *words):
    return json.loads(run(build / "bin/slim", *words, "--backend", "cpu", "--kernels", "reference", "--quiet", "--json", OMP_NUM_THREADS="1"))


def digests(folder):
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


def same(checks, what, ours, theirs):
    one, other = digests(ours), digests(theirs)
    checks.expect(one and one == other, f"{what}: the device's files are the CPU's", [n for n in one | other if one.get(n) != other.get(n)])


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


def need(build, *words):
    """What `slim plan` says of the device's memory; no device has to be there."""
    return json.loads(run(build / "bin/slim", "plan", *words, "--backend", "npu", "--quiet", "--json"))["device"]


def budgets(checks, build, work):
    device = Device(build, work)
    words = [*RECIPES["awq then gptq"][1:], "--model", DATA / QWEN, "--max-seq-length", 256]
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
    words = ["--plugin", "awq,gptq", *QUICK, *CALIB, "--batch-size", 1, "--model", DATA / QWEN]
    on_cpu(build, *words, "--output", work / "enough")
    peak = device.slim(*words, "--output", work / "enough-npu")[1]["peak_bytes"]
    for share in (0.9, 0.6, 0.3, 0.05):
        report, counts = device.slim(*words, "--kernels", "reference", "--output", work / f"share-{share}", memory=int(share * peak))
        same(checks, f"{share} of the memory", work / f"share-{share}", work / "enough")
        told = [kind for kind in report["notes"] if "out of the device's memory" in kind]
        checks.expect(counts["out_of_memory"] > 0 and told, f"{share} of the memory: it is told what was computed on the CPU", (counts, list(report["notes"])))


def interrupted(checks, build, work):
    device = Device(build, work)
    words = [*RECIPES["awq then gptq"][1:], "--model", DATA / QWEN, "--output", work / "resumed"]
    device.slim(*words, "--stop-after-blocks", 2)
    device.slim(*words, "--resume")
    same(checks, "a resumed run", work / "resumed", work / "awq-then-gptq-cpu")
    kept = ["--plugin", "gptq", "--model", DATA / QWEN]
    device.slim(*kept, *CALIB, "--save-statistics", work / "kept", "--output", work / "kept-npu")
    on_cpu(build, *kept, "--statistics", work / "kept", "--output", work / "kept-cpu")
    same(checks, "statistics of a device", work / "kept-npu", work / "kept-cpu")
    device.slim(*kept, "--statistics", work / "kept", "--output", work / "from-kept-npu")
    same(checks, "kept statistics on a device", work / "from-kept-npu", work / "kept-cpu")


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
    raise SystemExit(run_checks(pipelines, interrupted, evaluation, budgets, exhausted, without_device))
