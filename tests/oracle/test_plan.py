#!/usr/bin/env python3
"""slim plan on the configurations of published models, laid out as sparse files of the real shapes: its plan covers every tensor,
from headers alone, in less than 300 MiB. Where a weight map is known, the layout's names were checked against it."""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from kit import DATA, ROOT, build_folder, run

LARGEST_MEMORY = 300 * 2**20


def planned(build, folder):
    """The plan, and the peak memory of the process."""
    code = ("import resource, subprocess, sys\n"
            "code = subprocess.run(sys.argv[1:]).returncode\n"
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, file=sys.stderr)\nsys.exit(code)")
    result = subprocess.run([sys.executable, "-c", code, build / "bin/slim", "plan", "--plugin", "awq", "--model", folder, "--json"],
                            capture_output=True, text=True)
    assert result.returncode == 0, f"{folder.name}: {result.stderr}"
    return json.loads(result.stdout), int(result.stderr.split()[-1])


def headers(folder):
    names = set()
    for path in folder.glob("*.safetensors"):
        with open(path, "rb") as file:
            names |= set(json.loads(file.read(int.from_bytes(file.read(8), "little")))) - {"__metadata__"}
    return names


def main():
    build = build_folder()
    configs = sorted(path.parent for path in (DATA / "configs").glob("*/config.json"))
    assert len(configs) >= 7
    for config in configs:
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work) / config.name
            run(sys.executable, ROOT / "tests/tools/sparse_checkpoint.py", config, folder)
            plan, memory = planned(build, folder)
            tensors = headers(folder)
            # Packed experts stand in the plan layer by layer: the tensors that are not named are those that were cut up.
            whole = {name for name in tensors if not name.endswith(("experts.gate_up_proj", "experts.down_proj"))}
            assert whole <= set(plan["tensors"]), sorted(whole - set(plan["tensors"]))[:5]
            assert plan["tensor_count"] == len(tensors)
            assert plan["output_bytes"] < 0.5 * plan["input_bytes"]
            assert memory <= LARGEST_MEMORY, f"{memory} bytes"
        print(f"{config.name}: {len(tensors)} tensors, {plan['input_bytes'] / 1e9:.1f} -> {plan['output_bytes'] / 1e9:.1f} GB, "
              f"peak {memory / 2**20:.0f} MiB")


main()
