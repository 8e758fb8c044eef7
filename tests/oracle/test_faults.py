#!/usr/bin/env python3
"""Disks that fill up or break, and inputs that change, in the middle of a run: one clear line, exit code 1, what was finished is kept, and
once the fault is gone `--resume` gives the bytes of an undisturbed run.

    python tests/oracle/test_faults.py --build BUILD_DIR [--full]

System calls fail through a preloaded library (faulty_io.c), so that every stage is reached: the journal, the state between blocks, kept
statistics, shards, side files, the flush to the disk, the last renaming; reading weights; and inputs that are cut or exchanged."""
import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import kit
from kit import DATA, SAMPLES, digests, without_warnings

TOY = DATA / "toy-qwen3vl"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "LC_ALL": "C"}
GPTQ = ["--plugin", "gptq", "--scheme", "w4a16", "--calib", SAMPLES / "calib.jsonl", "--num-samples", 2, "--max-seq-length", 256]

# call, part of the path, calls that succeed first, errno, what the message says, whether blocks are finished by then
FULL, BROKEN = errno.ENOSPC, errno.EIO
FAULTS = [
    ("write", "journal.jsonl", 0, FULL, r"journal\.jsonl.*No space left", False),
    ("write", "journal.jsonl", 4, FULL, r"journal\.jsonl.*No space left", True),
    ("write", ".slim/batches-", 12, FULL, r"batches-.*No space left", None),
    ("write", ".slim/state-", 2, BROKEN, r"state-.*Input/output error", True),
    ("write", "statistics.safetensors.partial", 12, FULL, r"statistics\.safetensors\.partial.*No space left", True),
    ("write", "out.partial/model", 40, BROKEN, r"model.*safetensors.*Input/output error", True),
    ("write", "out.partial/config.json", 0, FULL, r"config\.json.*No space left", True),
    ("write", "out.partial/tokenizer.json", 0, FULL, r"tokenizer\.json.*No space left", True),
    ("sync", "out.partial/model", 0, BROKEN, r"model.*safetensors.*Input/output error", False),
    ("sync", "out.partial/model", 3, BROKEN, r"model.*safetensors.*Input/output error", True),
    ("sync", ".slim", 15, BROKEN, r"\.slim.*Input/output error", None),
    ("sync", "out.partial/tokenizer.json", 0, BROKEN, r"tokenizer\.json.*Input/output error", True),
    ("rename", "out.partial", 0, errno.EACCES, r"out\.partial.*Permission denied", True),
    ("rename", "statistics.safetensors.partial", 0, errno.EACCES, r"statistics\.safetensors\.partial.*Permission denied", True),
    ("read", "input/model", 60, BROKEN, r"input/model.*Input/output error", None),
    ("read", "input/tokenizer.json", 0, BROKEN, r"tokenizer\.json.*Input/output error", None),
]
IN_CI = (1, 4, 9, 12)


class Faults(kit.Checks):
    def __init__(self, build, work):
        super().__init__()
        self.program, self.work = build / "bin/slim", work
        self.command = self.into(work / "out", "--save-statistics", work / "statistics.safetensors", "--quiet")

    def into(self, output, *words):
        return [str(word) for word in (self.program, *GPTQ, "--model", self.work / "input", "--output", output, *words)]

    def slim(self, *words, command=None, **environment):
        return subprocess.run([str(word) for word in (*(command or self.command), *words)], capture_output=True, text=True, timeout=300, env={**ENVIRONMENT, **environment})

    def error(self, name, done, says, kept):
        """One line, and what it promises."""
        lines = without_warnings(done.stderr).splitlines()
        self.expect(done.returncode == 1 and len(lines) == 1 and lines[0].startswith("slim: error: ") and re.search(says, lines[0]),
                    f"{name}: exit code {done.returncode}: {done.stderr.strip()!r}, expected {says!r}")
        self.expect(not (self.work / "out").exists(), f"{name}: half an output has its name")
        partial = (self.work / "out.partial/.slim/journal.jsonl").exists()
        if kept is not None:
            self.expect(partial == kept, f"{name}: finished blocks are {'kept' if partial else 'gone'}: {done.stderr.strip()!r}")
        self.expect(partial == ("--resume" in done.stderr), f"{name}: kept is {partial}, and it says {done.stderr.strip()!r}")

    def whole(self, name, *words):
        done = self.slim(*words)
        self.expect(done.returncode == 0, f"{name}: afterwards exit code {done.returncode}: {done.stderr.strip()}")
        good = (self.work / "out").exists() and self.expected == self.result()
        self.expect(good, f"{name}: other files than undisturbed")
        left = [path.name for path in self.work.iterdir() if path.name.startswith(("out.", "statistics.safetensors."))]
        self.expect(not left, f"{name}: {left} is left")
        self.clear()

    def result(self):
        return digests(self.work / "out") | {"statistics": hashlib.sha256((self.work / "statistics.safetensors").read_bytes()).hexdigest()}

    def clear(self):
        for path in self.work.iterdir():
            if path.name.startswith("out"):
                shutil.rmtree(path)
            elif path.name.startswith("statistics"):
                path.unlink()


def check_calls(checks, library, faults):
    for call, path, after, number, says, kept in faults:
        name = f"{call} of {path}, after {after}, {errno.errorcode[number]}"
        done = checks.slim(LD_PRELOAD=str(library), FAULT_CALL=call, FAULT_PATH=path, FAULT_AFTER=str(after), FAULT_ERRNO=str(number))
        checks.error(name, done, says, kept)
        checks.whole(name, "--resume")
        print(f"{name}: {done.stderr.strip()}", flush=True)


def check_inputs(checks):
    """The run stops after some blocks; then a weight file is cut, or exchanged for another."""
    weights = sorted((checks.work / "input").glob("*.safetensors"))[-1]
    stored, stamp = weights.read_bytes(), weights.stat()
    for name, change, code, says in (("a truncated weight file", lambda: os.truncate(weights, len(stored) // 2), 1, weights.name),
                                     ("a weight file that is gone", weights.unlink, 1, weights.name),
                                     ("a changed weight file", lambda: weights.write_bytes(stored[:-9] + b"\1" + stored[-8:]), 2, "weight files")):
        done = checks.slim("--stop-after-blocks", 2)
        checks.expect(done.returncode == 0, f"{name}: {done.stderr.strip()}")
        change()
        done = checks.slim("--resume")
        checks.expect(done.returncode == code and says in done.stderr and len(without_warnings(done.stderr).splitlines()) == 1, f"{name}: exit code {done.returncode}: {done.stderr.strip()!r}")
        weights.write_bytes(stored)
        os.utime(weights, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        checks.whole(name, "--resume")


def check_while_running(checks):
    """A weight file is cut, or written anew, while the run reads it: an error that names it, and never a signal or a mixed output."""
    weights = sorted((checks.work / "input").glob("*.safetensors"))[-1]
    stored, stamp = weights.read_bytes(), weights.stat()
    for name, change, says in (("cut while running", lambda: os.truncate(weights, 4096), weights.name),
                               ("written anew while running", lambda: weights.write_bytes(stored), "weight files were changed")):
        process = subprocess.Popen(checks.command[:-1], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
        for line in process.stderr:
            if "quantizing 1/" in line:
                break
        change()
        _, error = process.communicate(timeout=300)
        checks.expect(process.returncode == 1 and says in error and not (checks.work / "out").exists(), f"{name}: exit code {process.returncode}: {error[-400:]!r}")
        weights.write_bytes(stored)
        os.utime(weights, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        checks.whole(name, "--resume")


def check_small_disks(checks):
    """Disks of every size that is too small, by steps: refused at the beginning, or kept at the end, and gone on with when there is room."""
    whole = checks.work / "whole"
    done = checks.slim(command=checks.into(whole, "--quiet"))
    assert done.returncode == 0, done.stderr
    undisturbed = digests(whole)
    need = sum(path.stat().st_size for path in whole.rglob("*")) >> 10
    disk = checks.work / "disk"
    out = disk / "out"
    command = checks.into(out, "--quiet")
    with kit.small_disk(disk, need) as mounted:
        for kib in (need // 2, *range(need - 300, need + 400, 50)) if mounted else ():
            mounted.resize(kib)
            done = checks.slim(command=command)
            if done.returncode != 0:
                lines = without_warnings(done.stderr).splitlines()
                checks.expect(done.returncode == 1 and len(lines) == 1 and re.search("No space left|disk is too small", lines[0]) and not out.exists(),
                              f"a disk of {kib} KiB: exit code {done.returncode}: {done.stderr.strip()!r}")
                mounted.resize(64 << 10)
                again = checks.slim("--resume", command=command)
                checks.expect(again.returncode == 0, f"a disk of {kib} KiB, then room: {again.stderr.strip()}")
            checks.expect(out.exists() and digests(out) == undisturbed, f"a disk of {kib} KiB: other files than undisturbed")
            print(f"{kib} KiB of {need}: {done.stderr.strip()[:160] or 'enough'}", flush=True)
            for path in disk.iterdir():
                shutil.rmtree(path)


def main():
    options = kit.options(full=False)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        shutil.copytree(TOY, work / "input")
        checks = Faults(options.build, work)
        done = checks.slim()
        assert done.returncode == 0, done.stderr
        checks.expected = checks.result()
        checks.clear()
        check_calls(checks, kit.faulty_io(work), FAULTS if options.full else [FAULTS[i] for i in IN_CI])
        check_while_running(checks)
        if options.full:
            check_inputs(checks)
            check_small_disks(checks)
        return checks.exit_code()


sys.exit(main())
