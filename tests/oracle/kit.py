"""What all oracle tests share: where things lie, slim's programs, checkpoints as tensors, files and disks, counted checks and the main program."""
import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests/data"
SAMPLES = DATA / "samples"
sys.path.insert(0, str(ROOT / "tests/tools"))
from packed_model import unpacked  # the folder of a model of tests/data: unpacked(build, "toy-hunyuan-moe")


def without_warnings(stderr):
    """What a program said beside its warnings."""
    return "\n".join(line for line in stderr.splitlines() if not line.startswith("slim: warning: "))


def options(**more):
    """--build BUILD, and flags by their defaults; those of False take no value."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=lambda text: Path(text).resolve(), required=True)
    for name, default in more.items():
        kind = {"action": "store_true"} if default is False else {"type": type(default), "default": default}
        parser.add_argument("--" + name.replace("_", "-"), **kind)
    return parser.parse_args()


def build_folder():
    return options().build


def run(*command, fails=0, **environment):
    """What a program writes; of one that has to fail, with an exit code or with any (True), all that it says."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env={**os.environ, **environment})
    expected = done.returncode > 0 if fails is True else done.returncode == fails
    if not expected:
        sys.exit(f"{' '.join(map(str, command))}: exit code {done.returncode}, expected {fails}: {done.stderr}")
    return done.stdout + done.stderr if fails else done.stdout


def slim(build, *arguments, **more):
    return run(build / "bin/slim", *arguments, "--quiet", **more)


def tensors_of(folder):
    """All tensors of a checkpoint."""
    from safetensors.torch import load_file  # loads PyTorch, which takes seconds that not every test needs
    merged = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        merged.update(load_file(file))
    return merged


def save(folder, values, config):
    """A checkpoint of one file."""
    from safetensors.torch import save_file
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in values.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


def load(folder):
    return tensors_of(folder), json.loads((Path(folder) / "config.json").read_text())


def module_of(values, name):
    return {key[len(name) + 1:]: value for key, value in values.items() if key.startswith(name + ".")}


def native_logits(build, folder, samples, dtype):
    """Logits [tokens, vocabulary] of slim's forward pass for each sample, a dictionary of tensors. It finds token types itself."""
    with tempfile.TemporaryDirectory() as scratch:
        data, output = Path(scratch) / "samples", Path(scratch) / "logits"
        named = {f"{i}.{name}": value for i, sample in enumerate(samples) for name, value in sample.items()}
        save(data, {name: value for name, value in named.items() if not name.endswith(".mm_token_type_ids")}, {})
        run(Path(build) / "bin/slim_logits", folder, data, output, dtype)
        logits = tensors_of(output)
        return [logits[f"{i}.logits"] for i in range(len(samples))]


def digests(folder):
    """SHA-256 of every file, by its path in the folder."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


class SmallDisk:
    def __init__(self, folder):
        self.folder = folder

    def resize(self, kib):
        subprocess.run(["mount", "-o", f"remount,size={kib}k", self.folder], check=True)


@contextlib.contextmanager
def small_disk(folder, kib):
    """A disk of its own in a new folder, or None where it may not be mounted, which it says."""
    Path(folder).mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder], capture_output=True).returncode != 0:
        print("skipped: a small disk (no right to mount one)")
        yield None
        return
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", folder], check=True)


def faulty_io(work):
    """The library that makes calls on files fail, or writes them down, for LD_PRELOAD: see faulty_io.c."""
    library = Path(work) / "faulty_io.so"
    if not library.exists():
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, Path(__file__).with_name("faulty_io.c"), "-ldl"], check=True)
    return library


class Checks:
    def __init__(self):
        self.count, self.failures = 0, []

    def expect(self, good, what, found=None):
        self.count += 1
        if not good:
            self.failures.append(what if found is None else f"{what}: {found}")
            print("FAILED:", self.failures[-1], flush=True)
        return good

    def exit_code(self, more=""):
        print(f"{self.count} checks, {len(self.failures)} failed{more}")
        return 1 if self.failures else 0


def run_checks(*steps):
    """A test's main program: every step(checks, build, work) in one scratch folder; the exit code."""
    build, checks = build_folder(), Checks()
    with tempfile.TemporaryDirectory() as name:
        for step in steps:
            step(checks, build, Path(name))
    return checks.exit_code()


def exit_code(good):
    print("ok" if good else "FAILED")
    return 0 if good else 1
