"""What tests of runs on a device share: the stand-in of tests/standin_device where the npu backend looks for torch_npu and CANN."""
import hashlib
import json
import os

from kit import SAMPLES, run

os.environ.setdefault("SLIM_PRODUCTS", "native")  # a device multiplies bf16 as it is: so must the CPU that it is compared with
CALIB = ["--calib", SAMPLES / "calib.jsonl", "--num-samples", 4, "--batch-size", 2]
QUICK = ["--set", "awq.grid=2", "--set", "awq.refine=0", "--set", "awq.rows=8"]
QUICK_GPTQ = ["--set", "gptq.range=minmax", "--set", "gptq.refit=false"]
CHAIN = ["--plugin", "awq,gptq", *QUICK, *QUICK_GPTQ, *CALIB]


class Device:
    """slim with `--backend npu`: what it said, and what the stand-in counted."""

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


def need(build, *words):
    """What `slim plan` says of the device's memory; no device has to be there."""
    return json.loads(run(build / "bin/slim", "plan", *words, "--backend", "npu", "--quiet", "--json"))["device"]
