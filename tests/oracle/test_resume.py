#!/usr/bin/env python3
"""Runs that are interrupted and gone on with give the same bytes as runs that are not.

A run is killed at random moments (SIGKILL: nothing can be tidied up) and resumed until it ends; every file must equal an undisturbed
run's. Besides: SIGINT and SIGTERM, --stop-after-blocks, what may not change between the two, two runs into one output, a damaged
record, a crash of a plugin, a full disk. `--full` kills 50 times for each algorithm."""
import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOY, SAMPLES = ROOT / "tests/data/toy-qwen3vl", ROOT / "tests/data/samples"
CALIB = ["--calib", SAMPLES / "calib.jsonl", "--num-samples", 8, "--batch-size", 4]
AWQ = ["--plugin", "awq", "--set", "awq.grid=4", "--set", "awq.rows=16", *CALIB]
RUNS = {"awq": AWQ,
        "gptq": ["--plugin", "gptq", "--scheme", "w4a16", *CALIB],
        "fp8": ["--plugin", "fp8", "--scheme", "fp8_dynamic"]}
KILLS, FULL_KILLS, TIMEOUT = 2, 50, 300
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "LC_ALL": "C"}


class Slim:
    def __init__(self, build, work):
        self.build, self.program, self.work = build, build / "bin" / "slim", work

    def command(self, words):
        return [str(word) for word in (self.program, *words, "--model", self.work / "model")]

    def start(self, *words):
        return subprocess.Popen(self.command(words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=self.work)

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


def digests(folder):
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


def same(work, one, other):
    ours, theirs = digests(work / one), digests(work / other)
    assert ours and ours == theirs, f"{one} and {other} differ in {[n for n in ours | theirs if ours.get(n) != theirs.get(n)]}"
    left = [path.name for path in work.iterdir() if path.name.startswith(one + ".")]
    assert not left, f"{left} is left beside {one}"


def check_kills(slim, work, name, words, kills, rng):
    begin = time.monotonic()
    slim.works(*words, "--output", name)
    length = time.monotonic() - begin
    resumed = 0
    for round in range(kills):
        again = f"{name}-{round}"
        process = slim.start(*words, "--output", again)
        time.sleep(rng.uniform(0.1, 1.0) * length)
        process.kill()
        process.communicate()
        for attempt in range(20):
            if (work / again).exists() and not (work / again / ".slim").exists():
                break
            assert not (work / again).exists() or (work / again / "config.json").exists(), "half an output has its final name"
            process = slim.start(*words, "--output", again, "--resume", "--json", "--quiet")
            if attempt < 2:
                time.sleep(rng.uniform(0.1, 1.0) * length)
                process.kill()
            out, error = process.communicate(timeout=TIMEOUT)
            assert process.returncode in (0, -signal.SIGKILL), f"{again}: exit code {process.returncode}: {error}"
            if process.returncode == 0:
                resumed += "resumed" in json.loads(out).get("notes", {})
        same(work, again, name)
        shutil.rmtree(work / again)
    print(f"{name}: killed {kills} times, {resumed} of the last runs went on from finished blocks; every file as undisturbed ({length:.1f} s)")


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
    shard = work / "model" / "model-00002-of-00003.safetensors"
    before = shard.read_bytes()
    shard.unlink()
    shard.write_bytes(before[:-5] + bytes([before[-5] ^ 1]) + before[-4:])
    slim.fails("the model's weight", *AWQ, *go_on, code=2)
    shard.unlink()
    shard.symlink_to((TOY / shard.name).resolve())
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
    slim.works(*AWQ, *go_on)
    same(work, "changed", "awq")
    print("changes: configuration, data, model, plugins, threads and damage are refused and named")


def check_signals(slim, work):
    for number, name in ((signal.SIGINT, "SIGINT"), (signal.SIGTERM, "SIGTERM")):
        slow = [*AWQ, "--set", "awq.grid=100", "--output", name]
        process = slim.start(*slow)
        for line in process.stderr:
            if "quantizing 6/" in line:
                break
        begin = time.monotonic()
        process.send_signal(number)
        _, error = process.communicate(timeout=TIMEOUT)
        took = time.monotonic() - begin
        assert process.returncode == 130 and "--resume" in error, f"{name}: {process.returncode}: {error}"
        assert took < 5, f"{name}: {took:.1f} s"  # a second on an idle machine
        assert not (work / name).exists() and (work / f"{name}.partial").exists()
        slim.works(*slow, "--resume")
        process = slim.start(*slow, "--overwrite")
        for line in process.stderr:
            if "quantizing 1/" in line:
                break
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
    slow = [*AWQ, "--set", "awq.grid=300", "--output", "shared"]
    process = slim.start(*slow)
    for line in process.stderr:
        if "quantizing 6/" in line:
            break
    for more in ([], ["--resume"]):
        slim.fails("another process is writing this output", *slow, *more, code=2)
    process.kill()
    process.communicate()
    print("two runs into one output: the second is refused")


def check_full_disk(slim, work):
    """A small disk of its own, which a file fills between two blocks' records."""
    disk = work / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk], capture_output=True).returncode != 0:
        print("skipped: a full disk (no right to mount a small tmpfs)")
        return
    try:
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
    finally:
        subprocess.run(["umount", disk], check=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "model").mkdir()
        for file in TOY.iterdir():
            (work / "model" / file.name).symlink_to(file.resolve())
        slim = Slim(options.build, work)
        for algorithm, words in RUNS.items():
            check_kills(slim, work, algorithm, words, FULL_KILLS if options.full else KILLS, rng)
        check_stop(slim, work)
        check_changes(slim, work)
        check_signals(slim, work)
        check_crash(slim, work)
        check_two_runs(slim, work)
        check_full_disk(slim, work)


main()
