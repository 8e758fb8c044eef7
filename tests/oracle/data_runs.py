"""What the tests of calibration data share: runs of the programs on a toy, and what they said."""
import json
import os
import subprocess
import tempfile
from pathlib import Path

from kit import DATA, Checks, build_folder, tensors_of

TOY = DATA / "toy-qwen3vl"
# AWQ as fast as it goes: these tests are about what goes in.
FAST = ["--plugin", "awq", "--set", "awq.grid=1", "--set", "awq.refine=0", "--set", "awq.rows=8", "--set", "awq.clip=none", "--quiet"]


class Slim:
    def __init__(self, build, work):
        self.build, self.work, self.runs = build, work, 0

    def tokens(self, data):
        """Everything that the model would get for a data set; or the error."""
        output = self.work / "encoded"
        done = subprocess.run([self.build / "bin/slim_encode", TOY, data, output], capture_output=True, text=True)
        if done.returncode != 0:
            return done.stderr
        return {name: value.tolist() for name, value in tensors_of(output).items()}

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


def run_checks(*steps):
    """A test's main program: every step(checks, slim) in one scratch folder, which is slim.work; the exit code."""
    build, checks = build_folder(), Checks()
    with tempfile.TemporaryDirectory() as name:
        slim = Slim(build, Path(name))
        for step in steps:
            step(checks, slim)
    return checks.exit_code(f", {slim.runs} runs")
