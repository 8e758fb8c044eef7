"""What the tests of calibration data share: runs of the programs on a toy, and what they said."""
import json
import os
import subprocess
from pathlib import Path

from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[2]
TOY, SAMPLES = ROOT / "tests/data/toy-qwen3vl", ROOT / "tests/data/samples"
# AWQ as fast as it goes: these tests are about what goes in.
FAST = ["--plugin", "awq", "--set", "awq.grid=1", "--set", "awq.refine=0", "--set", "awq.rows=8", "--set", "awq.clip=none", "--quiet"]


class Checks:
    def __init__(self):
        self.failures, self.count = [], 0

    def that(self, good, name, why=""):
        self.count += 1
        if not good:
            self.failures.append(f"{name}: {why}")
            print("FAILED", self.failures[-1], flush=True)
        return good


class Slim:
    def __init__(self, build, work):
        self.build, self.work, self.runs = build, work, 0

    def tokens(self, data):
        """Everything that the model would get for a data set; or the error."""
        output = self.work / "encoded"
        done = subprocess.run([self.build / "bin/slim_encode", TOY, data, output], capture_output=True, text=True)
        if done.returncode != 0:
            return done.stderr
        with safe_open(output / "model.safetensors", "pt") as file:
            return {name: file.get_tensor(name).tolist() for name in file.keys()}

    def length(self, text):
        """Tokens of a text."""
        (self.work / "whole.jsonl").write_text(json.dumps({"text": text}))
        return len(self.tokens(self.work / "whole.jsonl")["0.input_ids"])

    def quantize(self, data, *more, program=None, model=TOY):
        """(exit code, report or message)"""
        self.runs += 1
        command = [self.build / "bin/slim", *FAST, "--model", model, "--calib", data, "--json", "--output", self.work / f"out-{self.runs}", *more]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env={**os.environ, **(program or {})})
        return done.returncode, json.loads(done.stdout)["calibration"] if done.returncode == 0 else done.stderr.strip()
