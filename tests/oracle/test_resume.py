#!/usr/bin/env python3
"""Runs that are interrupted and gone on with give the same bytes as runs that are not.

A run is killed (SIGKILL: nothing can be tidied up) and resumed until it ends; every file must equal an undisturbed run's, and what was
recorded as finished may not be done again. It is killed at random moments, drawn evenly over the processor time that an undisturbed run
takes from its first file on, so that other work on the machine does not move them; and in place of, or in the middle of, a random one
of the calls by which it changes files, which reaches every state that files can be in.

Besides: SIGINT and SIGTERM, --stop-after-blocks, what may not change between the two, two runs into one output or into one file of
statistics, a damaged record, a crash of a plugin, a full disk. `--full` kills 50 times in either way for each algorithm."""
import concurrent.futures
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import kit
from kit import DATA, SAMPLES, digests

TOY = DATA / "toy-qwen3vl"
CALIB = ["--calib", SAMPLES / "calib.jsonl", "--num-samples", 8, "--batch-size", 4]
AWQ = ["--plugin", "awq", "--set", "awq.grid=4", "--set", "awq.rows=16", *CALIB]
RUNS = {"awq": AWQ,
        "gptq": ["--plugin", "gptq", "--scheme", "w4a16", *CALIB],
        "fp8": ["--plugin", "fp8", "--scheme", "fp8_dynamic"]}
KILLS, FULL_KILLS, TIMEOUT = 1, 50, 300
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "LC_ALL": "C"}


class Slim:
    def __init__(self, build, work):
        self.build, self.program, self.work = build, build / "bin" / "slim", work

    def command(self, words):
        return [str(word) for word in (self.program, *words, "--model", self.work / "model")]

    def start(self, *words, **environment):
        return subprocess.Popen(self.command(words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**ENVIRONMENT, **environment}, cwd=self.work)

    def started(self, line, *words):
        """Once it has said the line."""
        process = self.start(*words)
        for last in process.stderr:
            if line in last:
                return process
        raise AssertionError(f"{words}: never said {line!r}, but at last {last!r}")

    def run(self, *words, **options):
        return subprocess.run(self.command(words), capture_output=True, text=True, timeout=TIMEOUT, cwd=self.work, **{"env": ENVIRONMENT, **options})

    def works(self, *words, **options):
        result = self.run(*words, "--json", "--quiet", **options)
        assert result.returncode == 0, f"{words}: exit code {result.returncode}: {result.stderr}"
        return json.loads(result.stdout)

    def fails(self, says, *words, code, **options):
        result = self.run(*words, "--quiet", **options)
        assert result.returncode == code, f"{words}: exit code {result.returncode}, expected {code}: {result.stderr}"
        assert re.search(says, result.stderr), f"{words}: does not say {says!r}: {result.stderr}"


def same(work, one, other):
    ours, theirs = digests(work / one), digests(work / other)
    assert ours and ours == theirs, f"{one} and {other} differ in {[n for n in ours | theirs if ours.get(n) != theirs.get(n)]}"
    left = [path.name for path in work.iterdir() if path.name.startswith(one + ".")]
    assert not left, f"{left} is left beside {one}"


def processor_seconds(process):
    return time.clock_gettime(~process.pid << 3 | 2)  # the kernel's number of the clock of another process


def recorded_blocks(folder):
    """Finished blocks of an unfinished output."""
    journal = folder / ".slim" / "journal.jsonl"
    lines = journal.read_bytes().split(b"\n")[:-1] if journal.exists() else []
    return max([json.loads(line[17:]).get("blocks", 0) for line in lines], default=0)


class Killer:
    """Kills runs of one command, and goes on with them."""

    def __init__(self, slim, name, words):
        self.slim, self.work, self.name, self.words = slim, slim.work, name, words
        self.preload = {"LD_PRELOAD": str(kit.faulty_io(self.work)), "FAULT_PATH": f"{self.work}/{name}-"}
        log = self.work / f"{name}.log"
        process = slim.start(*words, "--output", f"{name}-0", **self.preload, FAULT_LOG=str(log))
        while not (self.work / f"{name}-0.partial").exists() and process.poll() is None:
            time.sleep(0.001)
        self.begin = processor_seconds(process)
        while process.poll() is None:
            self.end = processor_seconds(process)
            time.sleep(0.002)
        assert process.returncode == 0, process.communicate()
        self.calls = sum(not line.startswith(("renaming", "synced")) for line in log.read_text().splitlines())
        (self.work / f"{name}-0").rename(self.work / name)

    def at_a_moment(self, rng, *words):
        moment = rng.uniform(self.begin, self.end)
        process = self.slim.start(*self.words, *words)
        while process.poll() is None and processor_seconds(process) < moment:
            time.sleep(0.001)
        process.kill()
        return process

    def at_a_call(self, rng, *words):
        fault = {"FAULT_CALL": "any", "FAULT_AFTER": str(rng.randrange(self.calls)), "FAULT_ERRNO": rng.choice(["kill", "torn"])}
        return self.slim.start(*self.words, *words, **self.preload, **fault)

    def kill(self, way, number, seed):
        """The blocks that were recorded when it was killed for the last time."""
        rng = random.Random(f"{seed} {self.name} {way} {number}")
        kill = {"moment": self.at_a_moment, "call": self.at_a_call}[way]
        again, blocks = f"{self.name}-{way}-{number}", 0
        self.ended(again, kill(rng, "--output", again), blocks)
        for attempt in range(4):
            if (self.work / again).exists() and not (self.work / again / ".slim").exists():
                break
            assert not (self.work / again).exists() or (self.work / again / "config.json").exists(), "half an output has its final name"
            blocks = recorded_blocks(self.work / f"{again}.partial")
            go_on = ["--output", again, "--resume", "--json", "--quiet"]
            self.ended(again, kill(rng, *go_on) if attempt < 2 else self.slim.start(*self.words, *go_on), blocks)
        same(self.work, again, self.name)
        shutil.rmtree(self.work / again)
        return blocks

    @staticmethod
    def ended(name, process, blocks):
        out, error = process.communicate(timeout=TIMEOUT)
        assert process.returncode in (0, -signal.SIGKILL), f"{name}: exit code {process.returncode}: {error}"
        if process.returncode == 0 and out.startswith("{"):
            found = json.loads(out)
            told = found.get("notes", {}).get("resumed", {"examples": ["after 0 blocks"]})
            assert "complete" in found or f"after {blocks} blocks" in told["examples"][-1], f"{name}: {blocks} blocks were finished: {told}"


def check_kills(slim, name, words, kills, seed):
    begin = time.monotonic()
    killer = Killer(slim, name, words)
    cases = [(way, number) for way in ("moment", "call") for number in range(kills)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        blocks = list(pool.map(lambda case: killer.kill(*case, seed), cases))
    print(f"{name}: killed {len(cases)} times, one half at moments of {killer.begin:.2f} to {killer.end:.2f} s, the other at one of {killer.calls} calls, "
          f"with {min(blocks)} to {max(blocks)} blocks finished ({sum(count > 0 for count in blocks)} times any); every file as undisturbed "
          f"({time.monotonic() - begin:.0f} s)", flush=True)


def check_stop(slim, work):
    """At every block, and once with several outputs and kept statistics."""
    total = slim.works(*AWQ, "--output", "stop-0", "--stop-after-blocks", 1)["blocks"]
    assert total == 1 and not (work / "stop-0").exists()
    blocks = [path.name for path in (work / "stop-0.partial" / ".slim").iterdir()]
    assert "journal.jsonl" in blocks and len(blocks) == 3, blocks
    slim.fails("stop-0.partial: holds 1 finished blocks.*--resume.*--overwrite", *AWQ, "--output", "stop-0", code=2)
    for stop in (2, 5, 6):
        slim.works(*AWQ, "--output", "stop-0", "--resume", "--stop-after-blocks", stop)
    report = slim.works(*AWQ, "--output", "stop-0", "--resume")
    same(work, "stop-0", "awq")
    whole = slim.works(*AWQ, "--output", "whole")
    for key in ("metrics", "calibration", "folds", "largest_proof_error"):
        assert report[key] == whole[key], f"the report's {key} is another after resuming"
    slim.works(*AWQ, "--output", "fresh", "--resume")  # nothing to go on with
    same(work, "fresh", "awq")

    (work / "two.toml").write_text('[compression]\nplugin = "awq"\n[[output]]\npath = "PREFIX-a"\n[[output]]\npath = "PREFIX-b"\nscheme = "w3a16"\n')
    for prefix, stop in (("one", 0), ("two", 4)):
        (work / f"{prefix}.toml").write_text((work / "two.toml").read_text().replace("PREFIX", prefix))
    several = ["--set", "awq.grid=4", "--set", "awq.rows=16", *CALIB]
    slim.works("--config", "one.toml", *several, "--save-statistics", "one.safetensors")
    slim.works("--config", "two.toml", *several, "--save-statistics", "two.safetensors", "--stop-after-blocks", 4)
    result = slim.run("--config", "two.toml", *several, "--save-statistics", "two.safetensors", "--resume", "--quiet")
    assert result.returncode == 0, result.stderr
    for letter in "ab":
        same(work, f"two-{letter}", f"one-{letter}")
    assert (work / "one.safetensors").read_bytes() == (work / "two.safetensors").read_bytes()
    print("stop: gone on after blocks 1, 2, 5 and 6, with two outputs and kept statistics; every file as undisturbed")


def check_changes(slim, work):
    """What the result depends on may not change between a run and its continuation."""
    slim.works(*AWQ, "--output", "changed", "--stop-after-blocks", 3)
    go_on = ["--output", "changed", "--resume"]
    slim.fails("compression.awq.grid: 4, this run has 11", *AWQ, "--set", "awq.grid=11", *go_on, code=2)
    slim.fails("compression.quantization.*name", *AWQ, "--scheme", "w4a16", *go_on, code=2)
    slim.fails("dataset.num_samples", *AWQ[:-4], "--num-samples", 7, "--batch-size", 4, *go_on, code=2)
    slim.fails("plugin rtn", *["rtn" if word == "awq" else word for word in AWQ if "awq." not in str(word) and word != "--set"], *go_on, code=2)
    slim.fails("CPU threads", *AWQ, *go_on, "--threads", 2, code=2)
    data, samples = work / "calib.jsonl", SAMPLES / "calib.jsonl"
    data.write_bytes(samples.read_bytes().swapcase())
    os.utime(data, ns=(samples.stat().st_atime_ns, samples.stat().st_mtime_ns))
    slim.fails("the calibration data", *AWQ[:-len(CALIB)], "--calib", data, *CALIB[2:], *go_on, code=2)
    shard = work / "model" / "model-00002-of-00003.safetensors"
    before = shard.read_bytes()
    shard.unlink()
    shard.write_bytes(before[:-5] + bytes([before[-5] ^ 1]) + before[-4:])
    slim.fails("the model's weight", *AWQ, *go_on, code=2)
    shard.unlink()
    shard.symlink_to((TOY / shard.name).resolve())
    check_read_weights(slim, work, go_on)
    tokenizer = work / "model" / "tokenizer.json"
    text = tokenizer.read_bytes()
    tokenizer.unlink()
    tokenizer.write_bytes(text + b"\n")
    slim.fails("the model's tokenizer.json", *AWQ, *go_on, code=2)
    tokenizer.unlink()
    tokenizer.symlink_to((TOY / tokenizer.name).resolve())
    plugins = work / "plugins"
    plugins.mkdir()
    library = plugins / "libslim_algorithm_awq.so"
    library.write_bytes((slim.build / "lib/slim/plugins" / library.name).read_bytes() + b"\0")
    slim.fails("plugin awq", *AWQ, *go_on, "--plugin-dir", plugins, code=2)

    journal = work / "changed.partial" / ".slim" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes() + b"0123456789abcdef {\"blocks\": 4, \"ten")  # a crash in the middle of an entry: it never was
    weights = next((work / "changed.partial").glob("*.safetensors"))
    stored = weights.read_bytes()
    size = int.from_bytes(stored[:8], "little") + 8
    header = json.loads(stored[8:size])
    name = next(key for key in header if key.startswith("model.visual.blocks.0."))
    place = size + header[name]["data_offsets"][0]
    weights.write_bytes(stored[:place] + bytes([stored[place] ^ 1]) + stored[place + 1:])
    slim.fails(re.escape(name) + ".*--resume", *AWQ, *go_on, code=1)
    weights.write_bytes(stored)
    draw = random.Random(11)
    for file in (next(journal.parent.glob("batches-*.safetensors")), next(journal.parent.glob("state-*.json"))):
        stored = file.read_bytes()
        for _ in range(6):
            place = draw.randrange(len(stored))
            file.write_bytes(stored[:place] + bytes([stored[place] ^ 1 << draw.randrange(8)]) + stored[place + 1:])
            slim.fails(re.escape(file.name) + ": .*not those.*--resume", *AWQ, *go_on, code=1)
        file.write_bytes(stored)
    slim.works(*AWQ, *go_on)
    same(work, "changed", "awq")
    print("changes: configuration, data, model, plugins, threads and damage, in weights and in the record, are refused and named")


def check_read_weights(slim, work, go_on):
    """One bit of what finished blocks were made from, far inside of a tensor, in a file of the old size and time."""
    for shard in sorted((work / "model").glob("*.safetensors")):
        stored, original = shard.read_bytes(), shard.resolve()
        size = int.from_bytes(stored[:8], "little") + 8
        header = json.loads(stored[8:size])
        name = next((key for key in sorted(header) if key.startswith("model.visual.blocks.0.") and key.endswith("fc1.weight")), None)
        if not name:
            continue
        place = size + header[name]["data_offsets"][1] - 1
        shard.unlink()
        shard.write_bytes(stored[:place] + bytes([stored[place] ^ 1]) + stored[place + 1:])
        os.utime(shard, ns=(original.stat().st_atime_ns, original.stat().st_mtime_ns))
        slim.fails("tensors of model.visual.blocks.0 are no longer those", *AWQ, *go_on, code=2)
        shard.unlink()
        shard.symlink_to(original)
        return
    raise AssertionError("no tensor to change")


def check_signals(slim, work):
    for number, name in ((signal.SIGINT, "SIGINT"), (signal.SIGTERM, "SIGTERM")):
        slow = [*AWQ, "--set", "awq.grid=300", "--set", "awq.rows=128", "--output", name]
        process = slim.started("quantizing 6/", *slow)
        begin = time.monotonic()
        process.send_signal(number)
        _, error = process.communicate(timeout=TIMEOUT)
        took = time.monotonic() - begin
        assert process.returncode == 130 and "--resume" in error, f"{name}: {process.returncode}: {error}"
        assert took < 5, f"{name}: {took:.1f} s"  # a second on an idle machine
        assert not (work / name).exists() and (work / f"{name}.partial").exists()
        slim.works(*slow, "--resume")
        process = slim.started("quantizing 1/", *slow, "--overwrite")
        process.send_signal(number)
        process.send_signal(number)
        process.communicate(timeout=TIMEOUT)
        assert process.returncode == 130, process.returncode
        assert (work / name / "config.json").exists()
    print("signals: SIGINT and SIGTERM end at a point to go on from")


def check_crash(slim, work):
    """A plugin that ends the process, in whatever way and thread, is named; finished blocks are kept."""
    for fault, code, says in (("crashes", -signal.SIGABRT, "crashed with SIGABRT"), ("segfaults", -signal.SIGSEGV, "crashed with SIGSEGV"),
                              ("crashes_in_thread", -signal.SIGABRT, "crashed with SIGABRT"), ("exits", 1, r"ended by exit\(\)")):
        library = work / f"libslim_algorithm_{fault}.so"
        shutil.copy(slim.build / "tests/plugins_bad/misbehaving/libslim_algorithm_misbehaving.so", library)
        result = slim.run("--plugin", library, *CALIB, "--output", f"crashed-{fault}", "--quiet")
        assert result.returncode == code, f"{fault}: {result.returncode}: {result.stderr}"
        assert re.search(r"slim: error: .*" + says + r" in misbehaving: model\..*--resume", result.stderr), result.stderr
    print("crash: the plugin is named")


def check_two_runs(slim, work):
    """The second is refused, whatever the first is doing; a lock does not outlive its process."""
    kept = ["--save-statistics", "shared.safetensors"]
    slow = [*AWQ, "--set", "awq.grid=1000", "--set", "awq.rows=100000", *kept]
    for moment in ("reading samples 1/", "quantizing 6/"):
        process = slim.started(moment, *slow, "--output", "shared", "--overwrite")
        for more in ([], ["--resume"], ["--overwrite"], ["--resume", "--overwrite"]):
            slim.fails("shared.partial: another process is writing this output", *slow, "--output", "shared", *more, code=2)
        if moment.startswith("quantizing"):
            slim.fails("shared.safetensors.partial: another process is writing these statistics", *slow, "--output", "other", code=2)
            assert not (work / "other.partial").exists()
        process.kill()
        process.communicate()
    slim.works(*AWQ, *kept, "--output", "shared", "--overwrite")
    assert (work / "shared.safetensors").exists() and not (work / "shared.safetensors.partial").exists()
    print("two runs into one output, and into one file of statistics: the second is refused")


def check_full_disk(slim, work):
    """A small disk of its own, which a file fills between two blocks' records."""
    disk = work / "disk"
    with kit.small_disk(disk, 24 << 10) as mounted:
        if not mounted:
            return
        run = [*AWQ, "--output", disk / "out"]
        slim.works(*run, "--stop-after-blocks", 3)
        filler = disk / "filler"
        try:
            filler.write_bytes(b"x" * (30 << 20))
        except OSError:
            pass
        slim.fails("No space left.*3 of .* blocks are kept.*--resume", *run, "--resume", code=1)
        filler.unlink()
        slim.works(*run, "--resume")
        assert digests(disk / "out") == digests(work / "awq")
        print("full disk: what was finished is kept, and gone on with")


def main():
    options = kit.options(full=False, seed=1, only="")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "model").mkdir()
        for file in TOY.iterdir():
            (work / "model" / file.name).symlink_to(file.resolve())
        slim = Slim(options.build, work)
        for algorithm, words in RUNS.items():
            if options.only in algorithm:
                check_kills(slim, algorithm, words, FULL_KILLS if options.full else KILLS, options.seed)
        if options.only:
            return
        for check in (check_stop, check_changes, check_signals, check_crash, check_two_runs, check_full_disk):
            check(slim, work)


sys.exit(main())
