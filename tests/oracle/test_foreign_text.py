"""Text, names and files that nobody vouches for: what is not UTF-8 or would steer a terminal, pipes and folders under data names, links that
lead out of a model's folder, outputs where something is. Each ends within seconds, with one line or with a whole output."""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from kit import Checks, build_folder, small_disk

ROOT = Path(__file__).resolve().parents[2]
GOOD = json.dumps({"text": "a short text of a few words"}).encode()
CHINESE = "\u8fd9\u662f\u4e00\u4e2a\u975e\u5e38\u957f\u7684\u4e2d\u6587\u540d\u5b57\u7528\u6765\u6d4b\u8bd5\u622a\u65ad\u884c\u4e3a\u662f\u5426\u6b63\u786e"
CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]")


class ForeignText(Checks):
    def __init__(self, build, work):
        super().__init__()
        self.build, self.work = build, work
        self.model = ROOT / "tests/data/toy-qwen3vl"
        self.out = work / "out"

    def run(self, *arguments):
        try:
            return subprocess.run([self.build / "bin/slim", *arguments], capture_output=True, stdin=subprocess.DEVNULL, timeout=120)
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(arguments, -9, b"", b"it does not end")

    def calibrated(self, data, *more):
        return self.run("--plugin", "gptq", "--scheme", "w4a16", "--group-size", "32", "--num-samples", "2", "--max-seq-length", "64", "--model", self.model, "--calib", data,
                        "--output", self.out, "--overwrite", "--quiet", "--stop-after-blocks", "1", *more)

    def ends(self, what, done, code, *words):
        said = done.stderr + done.stdout
        lines = [line for line in done.stderr.splitlines() if line.startswith(b"slim: error: ")]
        wrong = ([f"exit code {done.returncode}"] if done.returncode != code else []) + (["control characters"] if CONTROL.search(said) else [])
        wrong += [f"{len(lines)} error lines"] if code == 1 and len(lines) != 1 else []
        wrong += ["an internal message"] if re.search(rb"json\.exception|basic_|std::|internal error", said) else []
        wrong += [f"does not say {word}" for word in words if word.encode() not in said]
        self.expect(not wrong, what, f"{', '.join(wrong)}: {done.stderr[-300:]!r}")


def check_samples(test):
    def lines(name, *values):
        path = test.work / f"{name}.jsonl"
        path.write_bytes(b"\n".join(value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False).encode() for value in values) + b"\n")
        return path

    for what, sample in (("a long key", {CHINESE: "x"}), ("a long role", {"messages": [{"role": CHINESE, "content": "x"}]}),
                         ("a long path", {"question": "a", "answer": "b", "image": "y" + CHINESE * 2 + ".png"}),
                         ("a key that sets the terminal's title", {"\x1b]0;pwned\x07": "x"})):
        data = lines("skipped", sample, GOOD, GOOD)
        test.ends(f"{what} in a skipped sample", test.calibrated(data, "--skip-bad-samples", "--json"), 0)
    test.ends("a role that clears the screen", test.calibrated(lines("escape", {"messages": [{"role": "\x1b[2J\x07", "content": "x"}]})), 1, "\\x1b[2J")
    test.ends("a key with C1 and carriage return", test.calibrated(lines("c1", {"\x9b31m\rslim: done": "x"})), 1, "\\xc2\\x9b31m\\x0d")
    latin = test.work / os.fsdecode(b"latin-\xe9.jsonl")
    latin.write_bytes(GOOD + b"\n" + GOOD + b"\n")
    test.ends("a data set whose name is not UTF-8", test.calibrated(latin, "--json"), 0)


def check_data_files(test):
    folder = test.work / "folder"
    (folder / "a.jsonl").mkdir(parents=True)
    test.ends("a folder a.jsonl among the data", test.calibrated(folder), 2, "a.jsonl", "a folder")
    (folder / "a.jsonl").rmdir()
    os.mkfifo(folder / "a.jsonl")
    test.ends("a pipe a.jsonl among the data", test.calibrated(folder), 2, "a.jsonl", "pipe")
    test.ends("a pipe as data", test.calibrated(folder / "a.jsonl"), 2, "pipe")
    test.ends("a device as data", test.calibrated("/dev/zero"), 2, "/dev/zero")


def check_output_names(test):
    out = test.work / os.fsdecode(b"out-\xe9")
    rtn = ("--plugin", "rtn", "--scheme", "w4a16", "--group-size", "32", "--model", test.model, "--output", out, "--quiet")
    test.ends("an output whose name is not UTF-8", test.run(*rtn, "--json"), 0)
    test.ends("it is verified", test.run("verify", out, "--json", "--quiet"), 0)
    test.ends("and told", test.run("verify", out / "none"), 1, "out-\\xe9")


def check_output_places(test):
    rtn = ("--plugin", "rtn", "--scheme", "w4a16", "--group-size", "32", "--model", test.model, "--quiet")
    empty = test.work / "empty"
    empty.mkdir()
    test.ends("an empty folder as output", test.run(*rtn, "--output", empty), 0)
    test.expect((empty / "config.json").exists(), "an empty folder becomes the output")
    test.ends("a folder that is not empty any more", test.run(*rtn, "--output", empty), 2, "exists already")
    volume = test.work / "volume"
    with small_disk(volume, 65536) as disk:
        if disk:
            test.ends("a mount point as output", test.run(*rtn, "--output", volume), 2, "mount point", "volume/NAME")
            test.ends("a folder inside of it", test.run(*rtn, "--output", volume / "out"), 0)


def check_links(test):
    secret = test.work / "secret"
    secret.mkdir()
    (secret / "id_rsa").write_text("PRIVATE KEY\n")
    blobs, snapshot = test.work / "models--org--toy/blobs", test.work / "models--org--toy/snapshots/0123abc"
    blobs.mkdir(parents=True), snapshot.mkdir(parents=True)
    for number, file in enumerate(path for path in test.model.iterdir() if path.is_file()):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    with open(snapshot / "big.txt", "wb") as big:
        big.truncate((256 << 20) + 1)
    (snapshot / os.fsdecode(b"caf\xe9.txt")).write_text("text")
    (snapshot / "extra").symlink_to(secret)
    (snapshot / "notes.txt").symlink_to(secret / "id_rsa")
    (snapshot / "self").symlink_to(".")
    rtn = ("--plugin", "rtn", "--scheme", "w4a16", "--group-size", "32", "--model", snapshot, "--output", test.out, "--quiet", "--overwrite")
    files = lambda: {str(path.relative_to(test.out)) for path in test.out.rglob("*")}
    done = test.run(*rtn)
    test.ends("a snapshot of the Hub's cache with links to elsewhere", done, 0, "notes.txt", "--allow-outside", "big.txt", "caf\\xe9.txt")
    test.expect({"tokenizer.json", "preprocessor_config.json"} <= files(), "the cache's own files are copied", str(sorted(files())))
    test.expect(not files() & {"notes.txt", "big.txt", "extra", "extra/id_rsa", "self"}, "what links lead to is not copied", str(sorted(files())))
    test.ends("--allow-outside", test.run(*rtn, "--allow-outside"), 0)
    test.expect("notes.txt" in files() and "self" not in files(), "copies a linked file", str(sorted(files())))


def main():
    with tempfile.TemporaryDirectory() as name:
        test = ForeignText(build_folder(), Path(name))
        for check in (check_samples, check_data_files, check_output_names, check_output_places, check_links):
            check(test)
        return test.exit_code()


if __name__ == "__main__":
    sys.exit(main())
