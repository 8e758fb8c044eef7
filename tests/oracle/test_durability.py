#!/usr/bin/env python3
"""What a power failure may take away is never what slim relies on: an output, or a record of finished blocks.

    python tests/oracle/test_durability.py --build BUILD_DIR

A preloaded library (faulty_io.c) writes down every call on files of a run. From that it is known at each moment what is on the disk for
certain: bytes that were written before a sync of their file began, and names that were made before a sync of their folder began. Demanded
are: of a record, every tensor that it names, and the state it goes on with; of a rename, all that it moves; at the end, the rename."""
import json
import sys
from collections import defaultdict
from pathlib import Path

import kit
from kit import DATA, SAMPLES

TOY = DATA / "toy-qwen3vl"
CALIB = ["--calib", SAMPLES / "calib.jsonl", "--num-samples", 2, "--max-seq-length", 256]
HASH_DIGITS = 17  # of a journal's line, with the blank after them


class Disk:
    """Names and bytes that are not on the disk yet."""

    def __init__(self):
        self.bytes, self.names = defaultdict(list), defaultdict(set)  # [begin, end) of a file; of a folder
        self.syncing = {}

    def make(self, path):
        path = Path(path)
        self.names[str(path.parent)].add(path.name)

    def delete(self, path):
        path = Path(path)
        self.names[str(path.parent)].discard(path.name)
        self.bytes.pop(str(path), None)

    def sync(self, path):
        self.syncing[path] = list(self.bytes[path]), set(self.names[path])

    def synced(self, path):
        ranges, names = self.syncing.pop(path)
        for done in ranges:
            self.bytes[path].remove(done)
        self.names[path] -= names

    def move(self, old, new):
        for kept in (self.bytes, self.names):
            for path in [path for path in kept if path == old or path.startswith(old + "/")]:
                kept[new + path[len(old):]] = kept.pop(path)
        self.make(new)

    def lacks(self, path, begin=0, end=None):
        """What of a file, and of the names that lead to it below the test's folder, could be lost."""
        path = Path(path)
        lost = [f"bytes {one} to {other} of {path.name}" for one, other in self.bytes[str(path)] if other > begin and (end is None or one < end)]
        return lost + [f"the name {one.name}" for one in (path, *path.parents) if one.name in self.names[str(one.parent)]]


def places(folder):
    """By tensor: its file, and where in it the tensor lies."""
    found = {}
    for file in folder.glob("*.safetensors"):
        data = file.read_bytes()
        size = 8 + int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8:size]).items():
            if name != "__metadata__":
                found[name] = file.name, *(size + offset for offset in entry["data_offsets"])
    return found


class Replay:
    """Goes through the calls of a run, whose record was kept from being deleted."""

    def __init__(self, checks, name, log, outputs, statistics=None):
        self.checks, self.name, self.outputs, self.statistics = checks, name, outputs, statistics
        self.places = [places(output) for output in outputs]
        self.journal = (outputs[0] / ".slim/journal.jsonl").read_bytes() if (outputs[0] / ".slim").exists() else b""
        self.disk, self.files, self.records, self.renames = Disk(), set(), 0, 0
        for line in log.read_text().splitlines():
            getattr(self, line.split("\t")[0])(*line.split("\t")[1:])
        self.whole("the run ends")

    def durable(self, what, lost):
        self.checks.expect(not lost, f"{self.name}: {what}, and all is on the disk", lost[:4])

    def inside(self, folder):
        return [file for file in self.files if file == folder or file.startswith(folder + "/")]

    def whole(self, what):
        self.durable(what, [lost for output in self.outputs for file in self.inside(str(output)) for lost in self.disk.lacks(file)])

    def write(self, path, begin, size):
        begin, end = int(begin), int(begin) + int(size)
        if path.endswith("/journal.jsonl"):
            self.record(Path(path), json.loads(self.journal[begin:end][HASH_DIGITS:]))
        self.disk.bytes[path].append((begin, end))

    def size(self, path, _):
        self.disk.bytes[path].append((0, 0))

    def create(self, path, _):
        self.files.add(path)
        self.disk.make(path)

    def mkdir(self, path, _):
        self.disk.make(path)

    def delete(self, path, _):
        if Path(path).parent.name == ".slim" and ".partial" not in path:
            self.whole("the record is deleted")
        self.files.discard(path)
        self.disk.delete(path)

    def sync(self, path, _):
        self.disk.sync(path)

    def synced(self, path, _):
        self.disk.synced(path)

    def renaming(self, path, _):
        self.renames += 1
        lost = [lost for file in self.inside(path) for lost in self.disk.lacks(file)]
        self.durable(f"{Path(path).name} is renamed", lost)

    def rename(self, path, new):
        for file in self.inside(path):
            self.files.remove(file)
            self.files.add(new + file[len(path):])
        self.disk.move(path, new)

    def record(self, journal, entry):
        if "blocks" not in entry:
            return
        self.records += 1
        states = [file for file in self.inside(str(journal.parent)) if f"-{entry['blocks']}." in file]
        self.checks.expect(states, f"{self.name}: what goes on after {entry['blocks']} blocks is there")
        lost = [lost for file in (journal, *states, *self.statistics_file()) for lost in self.disk.lacks(file)]
        for output, tensors, places in zip(self.outputs, entry["tensors"], self.places):
            for file, begin, end in map(places.get, tensors):
                lost += self.disk.lacks(f"{output}.partial/{file}", begin, end)
        self.durable(f"{entry['blocks']} blocks are recorded", lost)

    def statistics_file(self):
        return [f"{self.statistics}.partial"] if self.statistics else []


def logged(build, work, name, *words, fails=1):
    """The calls of a run below the new folder `name`."""
    (work / name).mkdir()
    log = work / f"{name}.log"
    more = {"FAULT_CALL": "delete", "FAULT_ERRNO": "13"} if fails else {}
    kit.slim(build, *words, fails=fails, LD_PRELOAD=str(kit.faulty_io(work)), FAULT_PATH=str(work / name), FAULT_LOG=str(log), OMP_NUM_THREADS="1", **more)
    return log


def check_calibrated(checks, build, work):
    """Two outputs in folders that are made for them, and kept statistics."""
    folder = work / "calibrated"
    outputs = [folder / "new/first", folder / "other/second"]
    (work / "run.toml").write_text('[compression]\nplugin = "gptq"\n' + "".join(
        f'[[output]]\npath = "{path}"\nscheme = "{scheme}"\n' for path, scheme in zip(outputs, ("w4a16", "w3a16"))))
    statistics = folder / "statistics.safetensors"
    log = logged(build, work, folder.name, "--config", work / "run.toml", "--model", TOY, *CALIB, "--save-statistics", statistics)
    replay = Replay(checks, "calibrated", log, outputs, statistics)
    checks.expect(replay.records == 10 and replay.renames == 3, "calibrated: ten records, three renames", (replay.records, replay.renames))


def check_data_free(checks, build, work):
    """Records are made behind the blocks that follow."""
    log = logged(build, work, "free", "--plugin", "fp8", "--scheme", "fp8_dynamic", "--model", TOY, "--output", work / "free/out", "--set", "output.max_shard_size=2MB")
    replay = Replay(checks, "data-free", log, [work / "free/out"])
    checks.expect(replay.records == 10 and replay.renames == 1, "data-free: ten records, one rename", (replay.records, replay.renames))


def check_compressed(checks, build, work):
    kit.slim(build, "--plugin", "sparse", "--model", TOY, *CALIB, "--output", work / "plain", OMP_NUM_THREADS="1")
    log = logged(build, work, "ranks", "compress", work / "plain", "--tp", 2, "--output", work / "ranks/out", fails=0)
    checks.expect(Replay(checks, "compress", log, [work / "ranks/out"]).renames == 1, "compress: one rename")


if __name__ == "__main__":
    sys.exit(kit.run_checks(check_calibrated, check_data_free, check_compressed))
