"""slim as its user sees it when something is wrong: one clear line on stderr, the right exit code, and nothing left behind.

Each case is one run of the program on a checkpoint, a data set, a plugin or a command line with one fault. `--only TEXT` runs the
cases whose names contain the text, `--show` prints every message.
"""
import argparse
import concurrent.futures
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "tools"))
from kit import without_warnings
from packed_model import unpacked

TOY = ROOT / "tests" / "data" / "toy-qwen3vl"
SAMPLES = ROOT / "tests" / "data" / "samples"
SHARD = "model-00001-of-00003.safetensors"
INDEX = "model.safetensors.index.json"
NORM_BIAS = "model.visual.merger.norm.bias"
UP_PROJ = "model.language_model.layers.1.mlp.up_proj.weight"
TIMEOUT = 300  # seconds; a run takes one

CALIB = ["--calib", SAMPLES / "calib.jsonl", "--num-samples", 4, "--batch-size", 4]
AWQ = ["--plugin", "awq", "--set", "awq.grid=1", "--set", "awq.refine=0", "--set", "awq.rows=8", "--set", "awq.clip=none"]
# What is never for the user: exceptions of libraries, source files, doubled or empty prefixes.
UNWANTED = [r"c10::", r"Exception raised", r"terminate called", r"\.cpp:\d", r"error:.*error:", r": :", r"what\(\)", r"internal error",
            r"\[json\.exception", r"basic_string", r"std::", r"(?<![\w.])(\S+): \1: "]


@dataclass
class Case:
    """A run that must fail with `code`, saying everything of `says` (regular expressions)."""
    name: str
    args: list
    says: list
    code: int = 1
    limits: dict = field(default_factory=dict)  # of subprocess.run


class Workshop:
    """Makes faulty inputs in a scratch folder."""

    def __init__(self, folder, build):
        self.folder, self.build = Path(folder), build

    def path(self, name):
        return self.folder / name

    def model(self, name, edits=None, source=TOY):
        """A checkpoint like `source`; `edits` maps file names to a function of the file's path (a copy), or None: left out."""
        target = self.path("model-" + name)
        target.mkdir()
        edits = edits or {}
        for file in source.iterdir():
            if file.name not in edits:
                (target / file.name).symlink_to(file.resolve())
            elif edits[file.name]:
                shutil.copy(file, target / file.name)
                edits[file.name](target / file.name)
        return target

    def jsonl(self, name, *lines):
        """A data set; objects become JSON, text stays as it is."""
        target = self.path(name + ".jsonl")
        target.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return target

    def write(self, name, text):
        self.path(name).write_text(text)
        return self.path(name)

    def plugins(self, name, library, old, new):
        """A folder with one plugin in which the bytes `old` are replaced."""
        target = self.path("plugins-" + name)
        target.mkdir()
        data = (self.build / "lib" / "slim" / "plugins" / library).read_bytes()
        assert data.count(old) == 1 and len(old) == len(new), library
        (target / library).write_bytes(data.replace(old, new))
        return target


def replaced(old, new):
    def edit(path):
        text = path.read_text()
        assert old in text, f"{path}: no {old!r}"
        path.write_text(text.replace(old, new))
    return edit


def json_edit(change):
    def edit(path):
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))
    return edit


def read_header(path):
    data = path.read_bytes()
    size = struct.unpack_from("<Q", data)[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def header_edit(change):
    """Rewrites the header of a safetensors file, and leaves the tensors' bytes alone."""
    def edit(path):
        header, body = read_header(path)
        change(header)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return edit


def poke(name, offset, value):
    """Overwrites bytes of a tensor."""
    def edit(path):
        header, body = read_header(path)
        begin = path.stat().st_size - len(body) + header[name]["data_offsets"][0]
        with open(path, "r+b") as file:
            file.seek(begin + offset)
            file.write(value)
    return edit


def truncated(path):
    os.truncate(path, path.stat().st_size - 1000)


def rename(entries, old, new):
    entries[new] = entries.pop(old)


def first_tensor(header):
    return next(name for name in header if name != "__metadata__")


def shard_of(tensor):
    return json.loads((TOY / INDEX).read_text())["weight_map"][tensor]


def chat(*parts, answer="yes"):
    return {"messages": [{"role": "user", "content": list(parts)}, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]}


def text(value):
    return {"type": "text", "text": value}


def image(value):
    return {"type": "image", "image": str(value)}


def checkpoint_cases(work):
    def lie(change):
        return {SHARD: header_edit(lambda header: change(header, header[first_tensor(header)]))}

    def overlap(header, entry):
        names = [name for name in header if name != "__metadata__"]
        other = next(name for name in names[1:] if header[name]["shape"] == entry["shape"] and name != names[0])
        header[other]["data_offsets"] = entry["data_offsets"]

    huge = {SHARD: lambda path: path.write_bytes(struct.pack("<Q", 1 << 40) + path.read_bytes()[8:])}
    nan = b"\xc0\x7f"
    for name, edits, says in [
        ("missing shard", {SHARD: None}, [SHARD]),
        ("truncated shard", {SHARD: truncated}, [SHARD, "truncated|ends|bytes"]),
        ("empty shard", {SHARD: lambda path: path.write_bytes(b"")}, [SHARD]),
        ("lying header: length of the header", huge, [SHARD, "1099511627776"]),
        ("lying header: offsets", lie(lambda _, entry: entry.update(data_offsets=[0, 1 << 40])), [SHARD, "offsets"]),
        ("lying header: dtype", lie(lambda _, entry: entry.update(dtype="F32")), [SHARD, "F32"]),
        ("lying header: unknown dtype", lie(lambda _, entry: entry.update(dtype="BF17")), [SHARD, "BF17"]),
        ("lying header: shape", lie(lambda _, entry: entry.update(shape=[3, 5])), [SHARD, r"\[3, ?5\]"]),
        ("lying header: negative shape", lie(lambda _, entry: entry.update(shape=[-1, 5])), [SHARD, "shape"]),
        ("lying header: overlapping tensors", lie(overlap), [SHARD, "overlap|offsets"]),
        ("header that is no JSON", {SHARD: lambda path: path.write_bytes(struct.pack("<Q", 8) + b"{ broken" + path.read_bytes()[16:])}, [SHARD]),
        ("index naming an absent tensor", {INDEX: json_edit(lambda index: index["weight_map"].update(ghost=SHARD))}, ["ghost", SHARD]),
        ("index naming an absent file", {INDEX: json_edit(lambda index: index["weight_map"].update({UP_PROJ: "ghost.safetensors"}))}, ["ghost.safetensors"]),
        ("index naming a file outside", {INDEX: json_edit(lambda index: index["weight_map"].update({UP_PROJ: "../ghost.safetensors"}))}, [r"\.\./ghost.safetensors"]),
        ("broken index", {INDEX: lambda path: path.write_text('{"weight_map": {')}, [INDEX]),
        ("a tensor that the index does not name", {INDEX: json_edit(lambda index: index["weight_map"].pop(UP_PROJ))}, [re.escape(UP_PROJ), INDEX]),
        ("a tensor of the model is absent", {INDEX: json_edit(lambda index: rename(index["weight_map"], UP_PROJ, "unused")),
                                            shard_of(UP_PROJ): header_edit(lambda header: rename(header, UP_PROJ, "unused"))}, [re.escape(UP_PROJ), "missing"]),
        ("a tensor that the model does not have", {INDEX: json_edit(lambda index: rename(index["weight_map"], NORM_BIAS, "unused")),
                                                  shard_of(NORM_BIAS): header_edit(lambda header: rename(header, NORM_BIAS, "unused"))}, ["unused|" + re.escape(NORM_BIAS)]),
        ("broken config.json", {"config.json": lambda path: path.write_text('{"model_type": ')}, ["config.json"]),
        ("empty config.json", {"config.json": lambda path: path.write_text("")}, ["config.json"]),
        ("config.json of another shape", {"config.json": replaced('"hidden_size": 256', '"hidden_size": 320')}, ["320", "256"]),
        ("config.json with a wrong type", {"config.json": replaced('"hidden_size": 256', '"hidden_size": "256"')}, ["config.json", "hidden_size"]),
        ("config.json without a key", {"config.json": replaced('"num_attention_heads": 4,', "")}, ["config.json", r"self_attn\.q_proj", "2048"]),
        ("config.json with more layers", {"config.json": replaced('"num_hidden_layers": 4', '"num_hidden_layers": 5')}, [r"layers\.4"]),
        ("missing config.json", {"config.json": None}, ["config.json"]),
        ("unknown model_type", {"config.json": replaced('"model_type": "qwen3_vl",\n  "text', '"model_type": "mystery",\n  "text')},
         ["mystery", "--adapter", "qwen3vl", "hunyuan"]),
    ]:
        yield Case(name, ["--plugin", "rtn", "--model", work.model(name.replace(" ", "_").replace(":", ""), edits)], says)

    nan_model = work.model("nan", {shard_of(UP_PROJ): poke(UP_PROJ, 4242, nan)})
    yield Case("NaN weights, rtn", ["--plugin", "rtn", "--model", nan_model], [r"layers\.1", "up_proj", "(?i)nan"])
    yield Case("NaN weights, awq", [*AWQ, *CALIB, "--model", nan_model], [r"layers\.1", "up_proj", "(?i)nan"])
    norm = "model.language_model.layers.2.input_layernorm.weight"
    yield Case("NaN in a norm, awq", [*AWQ, *CALIB, "--model", work.model("nan_norm", {shard_of(norm): poke(norm, 2, nan)})],
               [r"layers\.2", re.escape(norm), "(?i)nan"])
    embedding = "model.language_model.embed_tokens.weight"
    yield Case("NaN in the embedding, awq", [*AWQ, *CALIB, "--model", work.model("nan_embedding", {shard_of(embedding): poke(embedding, 0, nan * 256 * 1856)})],
               [re.escape(embedding), "(?i)nan"])
    tokenizer = work.model("tokenizer", {"tokenizer.json": lambda path: path.write_text('{"model": ')})
    yield Case("broken tokenizer.json", [*AWQ, *CALIB, "--model", tokenizer], ["tokenizer.json"])
    yield Case("missing tokenizer.json", [*AWQ, *CALIB, "--model", work.model("no_tokenizer", {"tokenizer.json": None, "vocab.json": None})], ["tokenizer.json"])
    yield Case("broken chat template", [*AWQ, *CALIB, "--model", work.model("template", {"chat_template.json": json_edit(
        lambda value: value.update(chat_template="{% for message in messages %}"))})], ["chat_template"])
    yield Case("broken preprocessor_config.json", [*AWQ, *CALIB, "--model", work.model("preprocessor", {"preprocessor_config.json": lambda path: path.write_text("[]")})],
               ["preprocessor_config.json"])
    yield Case("tokenizer.json of a terabyte", [*AWQ, *CALIB, "--model", work.model("terabyte", {"tokenizer.json": lambda path: os.truncate(path, 1 << 40)})],
               ["tokenizer.json", "1099511627776"])
    yield Case("wrong architecture for the adapter", ["--plugin", "rtn", "--model", TOY, "--adapter", "hunyuan"], ["hunyuan", "'qwen3vl' serves", "--adapter"])
    yield Case("model folder missing", ["--plugin", "rtn", "--model", work.path("nowhere")], ["nowhere"])
    yield Case("model is a file", ["--plugin", "rtn", "--model", TOY / "config.json"], ["config.json", "folder"], code=2)
    (work.path("empty")).mkdir()
    yield Case("empty model folder", ["--plugin", "rtn", "--model", work.path("empty")], ["empty"])


def data_cases(work):
    def awq(data, *more):
        return [*AWQ, "--model", TOY, "--batch-size", 4, "--num-samples", 4, "--calib", data, *more]

    good = chat(text("What is it?"))
    work.write("not.png", "this is no image")
    half = (SAMPLES / "images" / "0001.png").read_bytes()
    work.path("half.png").write_bytes(half[: len(half) // 2])
    for name, lines, says in [
        ("an image that does not decode", [good, chat(image("not.png"), text("What?"))], [r"jsonl:2", "not.png"]),
        ("an image cut in the middle", [good, chat(image("half.png"), text("What?"))], [r"jsonl:2", "half.png"]),
        ("a missing image file", [good, good, chat(image("gone.png"), text("What?"))], [r"jsonl:3", "gone.png"]),
        ("an image of the web", [chat(image("https://example.com/a.png"), text("What?"))], [r"jsonl:1", "example.com"]),
        ("a broken data: URL", [chat(image("data:image/png;base64,@@@@"), text("What?"))], [r"jsonl:1", "base64"]),
        ("a broken JSONL line", [good, '{"messages": ['], [r"jsonl:2"]),
        ("a JSONL line that is no sample", [good, {"foo": 1}], [r"jsonl:2", "messages"]),
        ("a JSONL line without content", [{"messages": [{"role": "user"}]}], [r"jsonl:1", "content"]),
        ("a role that nobody knows", [{"messages": [{"role": "nobody", "content": "hello"}]}], [r"jsonl:1"]),
        ("text with an image placeholder", [good, chat(text("a <|image_pad|> in the text"))], [r"jsonl:2", "image_pad|placeholder"]),
        ("an image and a placeholder", [chat(image("ok.png"), text("and <|image_pad|>"))], [r"jsonl:1", "image_pad|placeholder"]),
        ("an empty calibration set", [], ["jsonl", "no document", "expected"]),
        ("a calibration set of blank lines", ["", "  "], ["jsonl", "no document", "expected"]),
    ]:
        shutil.copy(SAMPLES / "images" / "0001.png", work.path("ok.png"))
        yield Case(name, awq(work.jsonl(re.sub(r"\W", "_", name), *lines)), says)
    yield Case("only samples that the model cannot take", [*AWQ, "--model", work.dense, "--calib", work.jsonl("pictures", chat(image("ok.png"), text("What?")))],
               ["pictures.jsonl", "image"], code=2)
    yield Case("--calib path missing", awq(work.path("nowhere.jsonl")), ["nowhere.jsonl"])
    yield Case("--calib of an unknown kind", awq(work.write("data.xyz", "text")), ["data.xyz", "jsonl"])
    work.path("no_data").mkdir()
    yield Case("--calib folder without data", awq(work.path("no_data")), ["no_data"])
    yield Case("no calibration for awq", [*AWQ, "--model", TOY], ["awq", "--calib"], code=2)


def usage_cases(work):
    rtn = ["--plugin", "rtn", "--model", TOY]

    def toml(name, contents):
        return [*rtn, "--config", work.write(name + ".toml", contents)]

    for name, args, says in [
        ("broken TOML", toml("broken", "[model\npath = 1\n"), ["broken.toml:1"]),
        ("unknown TOML key", toml("key", "[dataset]\nnum_sample = 4\n"), ["key.toml", "num_sample", "num_samples"]),
        ("unknown TOML table", toml("table", "[datset]\nnum_samples = 4\n"), ["table.toml", "datset", "dataset"]),
        ("TOML value of a wrong type", toml("type", "[dataset]\nnum_samples = \"four\"\n"), ["type.toml", "num_samples", "four"]),
        ("TOML value out of range", toml("range", "[dataset]\nnum_samples = -4\n"), ["range.toml", "num_samples", "-4"]),
        ("unknown flag", [*rtn, "--num-sample", 4], ["--num-sample", "--num-samples"]),
        ("flag without a value", ["--plugin", "rtn", "--model"], ["--model"]),
        ("flag given twice", [*rtn, "--model", TOY], ["--model", "twice"]),
        ("number that is none", [*rtn, "--num-samples", "many"], ["--num-samples", "many"]),
        ("unexpected word", [*rtn, "word"], ["word"]),
        ("no model", ["--plugin", "rtn"], ["--model"]),
        ("no plugin", ["--model", TOY], ["--plugin"]),
        ("unknown scheme", [*rtn, "--scheme", "w4a17"], ["w4a17", "w4a16"]),
        ("a scheme for a plugin", ["--plugin", "fp8_static", "--model", TOY], ["fp8_static", "--scheme fp8_static", "--plugin"]),
        ("unknown --set key", [*rtn, "--set", "run.sead=1"], [r"run\.sead", r"run\.seed"]),
        ("--set without a value", [*rtn, "--set", "run.seed"], [r"run\.seed", "="]),
        ("unknown option of a plugin", [*AWQ, "--model", TOY, "--set", "awq.gird=3"], ["gird", "grid"]),
        ("option of a plugin out of range", ["--plugin", "awq", "--model", TOY, "--set", "awq.grid=-3"], ["grid", "-3"]),
        ("option of a plugin that is not in use", [*rtn, "--set", "awq.grid=3"], ["awq"]),
        ("--plugin-dir missing", [*rtn, "--plugin-dir", work.path("nowhere")], ["nowhere"]),
        ("output is the input", [*rtn, "--output", work.path("model-itself")], ["model-itself", "input"]),
        ("output inside the input", [*rtn, "--output", work.path("model-itself") / "out"], ["model-itself", "input"]),
        ("output exists", [*rtn, "--output", work.path("rtn")], ["rtn", "--overwrite"]),
        ("output exists and is no checkpoint", [*rtn, "--overwrite", "--output", work.path("precious")], ["precious"]),
        ("ignore pattern that matches nothing", [*rtn, "--ignore", "model.langage_model.*"], ["langage_model"]),
        ("broken ignore pattern", [*rtn, "--ignore", "re:(("], [r"re:\(\("]),
        ("group size below -1", [*rtn, "--group-size", -7], ["-7"]),
        ("group size that does not divide", [*rtn, "--group-size", 96], ["96", "256", "group_size_fallback"]),
        ("group size for a scheme without groups", [*rtn, "--scheme", "w8a8", "--group-size", 64], ["64", "w8a8"]),
        ("unknown dtype", [*rtn, "--dtype", "float17"], ["float17", "float16"]),
        ("everything ignored", [*rtn, "--ignore", "*"], ["ignore"]),
    ]:
        if name.startswith("output is") or name.startswith("output inside"):
            args = [str(arg).replace(str(TOY), str(work.path("model-itself"))) for arg in args]
        yield Case(name, args, says, code=2)
    yield Case("a scheme that the algorithm cannot make", [*rtn, "--scheme", "2:4"], ["rtn", "2:4", "sparse"])
    if (work.build / "lib" / "slim" / "plugins" / "libslim_format_awq.so").exists():
        yield Case("a scheme that the format cannot hold", [*rtn, "--scheme", "w8a8", "--format", "awq"], ["w8a8", "awq"])
    else:
        print("skipped: a scheme that the format cannot hold (compressed-tensors holds all that rtn makes)")
    scattered = ["--plugin", "gptq", "--set", "gptq.desc_act=true", "--set", "gptq.static_groups=false", "--model", TOY, *CALIB, "--scheme", "w4a16"]
    for form in ("compressed-tensors", "awq", "ascend"):
        yield Case(f"scattered groups in {form}", [*scattered, "--format", form], ["no index of groups", "choose --format gptq or gptq_v2"])
        yield Case(f"a plan of scattered groups in {form}", ["plan", *scattered, "--format", form], ["no index of groups", "choose --format gptq or gptq_v2"])
    yield Case("too little memory allowed", [*rtn, "--max-memory", "1MB"], ["run.max_memory", "1.00 MB", "the least that would do is"])
    yield Case("a plugin built for another LibTorch", [*rtn, "--plugin-dir", work.plugins("torch", "libslim_algorithm_rtn.so", b"torch=2.11.0", b"torch=2.10.0")],
               ["libslim_algorithm_rtn.so", r"2\.10\.0", r"2\.11\.0", "build"])
    unreadable = work.path("plugins-unreadable")
    unreadable.mkdir()
    (unreadable / "libslim_algorithm_mine.so").write_bytes(b"\x7fELF cut off")
    yield Case("a plugin that is no library", ["--plugin", "mine", "--model", TOY, "--plugin-dir", unreadable], ["libslim_algorithm_mine.so"])
    for name, args, says in [("unknown command", ["plam"], ["plam", "plan"]),
                             ("inspect of nothing", ["inspect"], ["folder|DIR"]),
                             ("plugins without a word", ["plugins"], ["list"]),
                             ("unknown format", [*rtn, "--format", "compressed-tensor"], ["compressed-tensor", "compressed-tensors"]),
                             ("unknown backend", [*rtn, "--backend", "cpuu"], ["cpuu", "cpu"]),
                             ("unknown adapter", [*rtn, "--adapter", "qwen3lv"], ["qwen3lv", "qwen3vl"]),
                             ("unknown plugin", ["--plugin", "rtm", "--model", TOY], ["rtm", "rtn", "lib/slim/plugins"]),
                             ("info on an unknown plugin", ["plugins", "info", "awk"], ["awk", "awq"]),
                             ("verify with an unknown flag", ["verify", TOY, "--referense", TOY], ["--reference"])]:
        yield Case(name, args, says, code=2)
    for name, args, says in [("inspect of a missing folder", ["inspect", work.path("nowhere")], ["nowhere"]),
                             ("verify of a missing folder", ["verify", work.path("nowhere")], ["nowhere"]),
                             ("plan of a missing folder", ["plan", "--plugin", "rtn", "--model", work.path("nowhere")], ["nowhere"]),
                             ("eval of missing data", ["eval", TOY, "--data", work.path("nowhere.jsonl")], ["nowhere"]),
                             ("missing TOML file", [*rtn, "--config", work.path("gone.toml")], ["gone.toml"])]:
        yield Case(name, args, says)


def disk_cases(work):
    rtn = ["--plugin", "rtn", "--model", TOY]
    limit = 1 << 20
    yield Case("files may not grow", rtn, ["model.safetensors", "(?i)too large"],
               limits={"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))})
    mount = work.path("disk")
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", mount], capture_output=True).returncode == 0:
        work.mounts = [mount]
        yield Case("full disk", [*rtn, "--output", mount / "out"], ["out", "disk", "needed", "available"])
    else:
        print("skipped: full disk (no right to mount a small tmpfs)")
    if os.geteuid() == 0:
        print("skipped: permission denied (root may do everything)")
        return
    locked = work.path("locked")
    locked.mkdir(mode=0o500)
    yield Case("no right to write the output", [*rtn, "--output", locked / "out"], ["locked", "(?i)permission denied"])
    secret = work.model("secret", {"config.json": lambda path: path.chmod(0)})
    yield Case("no right to read the input", ["--plugin", "rtn", "--model", secret], ["config.json", "(?i)permission denied"])


def nested(levels):
    return "[" * levels + "]" * levels


def nested_cases(work):
    """JSON of others nests 64 levels at most, wherever it is read."""
    rtn, awq = ["--plugin", "rtn", "--model"], [*AWQ, *CALIB, "--model"]

    def written(text):
        return lambda path: path.write_text(text)

    def added(name, file, text):
        folder = work.model(name, {file: None})
        (folder / file).write_text(text)
        return folder

    deep = '{"a": ' + nested(64) + "}"
    endless = '{"image_mean": ' + nested(200_000) + "}"
    says = ["nested deeper than 64"]
    for file, command in (("config.json", rtn), (INDEX, rtn), ("quant_model_description.json", rtn), ("slim_checksums.json", ["verify"]), ("tokenizer.json", awq),
                          ("tokenizer_config.json", awq), ("chat_template.json", awq), ("preprocessor_config.json", awq)):
        yield Case(f"{file} of 65 levels", [*command, added("deep_" + file, file, deep)], [re.escape(file), *says], code=3 if command == ["verify"] else 1)
    yield Case("preprocessor_config.json nested without end", [*awq, work.model("endless", {"preprocessor_config.json": written(endless)})],
               ["preprocessor_config.json", *says])
    for levels, fault in ((65, says), (200_000, says)):
        text = json_edit(lambda config: config.update(quantization_config=nested(levels)))
        yield Case(f"quantization_config of a text of {levels} levels", [*rtn, work.model(f"text_{levels}", {"config.json": text})],
                   ["config.json, quantization_config", *fault])
    yield Case("a sample of 65 levels", [*AWQ, "--model", TOY, "--calib", work.jsonl("deep", deep)], ["deep.jsonl:1", *says])
    statistics, text = work.path("deep.safetensors"), deep.encode()
    header = json.dumps({"fingerprint": {"dtype": "U8", "shape": [len(text)], "data_offsets": [0, len(text)]}}).encode()
    statistics.write_bytes(struct.pack("<Q", len(header)) + header + text)
    yield Case("statistics with a fingerprint of 65 levels", [*AWQ, "--model", TOY, "--statistics", statistics], ["deep.safetensors", *says])
    header = deep.encode()
    yield Case("a header of 65 levels", [*rtn, work.model("deep_header", {SHARD: lambda path: path.write_bytes(struct.pack("<Q", len(header)) + header)})], [SHARD, *says])


class Tester:
    def __init__(self, build, work, show):
        self.slim, self.work, self.show, self.count, self.failures = build / "bin" / "slim", work, show, 0, []

    def run(self, args, **limits):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "LC_ALL": "C", "SLIM_PLUGIN_PATH": ""}
        return subprocess.run([self.slim, *map(str, args)], capture_output=True, text=True, timeout=TIMEOUT, env=environment,
                              cwd=self.work.folder, **limits)

    def check(self, name, good, why):
        self.count += 1
        if not good:
            self.failures.append(f"{name}: {why}")

    def fails(self, case, number):
        """What is wrong about the way in which a run failed; empty if nothing is."""
        args = list(case.args)
        command = str(args[0])
        output = self.work.path(f"out-{number}")
        if command.startswith("--") and "--output" not in args and "--plugin" in args + ["--model"]:
            args += ["--output", output]
        elif "--output" in args:
            output = Path(args[args.index("--output") + 1])
        if command.startswith("--"):
            args += ["--quiet"]
        before = tree(output), output.exists()
        result = self.run(args, **case.limits)
        error = without_warnings(result.stderr)
        if self.show:
            print(f"[{case.name}] {result.returncode}\n    {error}", flush=True)
        wrong = []
        if result.returncode != case.code:
            wrong.append(f"exit code {result.returncode}, expected {case.code}")
        if "\n" in error or not error.startswith("slim: error: "):
            wrong.append("not exactly one line that starts with 'slim: error: '")
        wrong += [f"does not say {says!r}" for says in case.says if not re.search(says, error)]
        wrong += [f"says {text!r}" for text in UNWANTED if re.search(text, error)]
        if result.stdout:
            wrong.append(f"stdout: {result.stdout[:200]!r}")
        if (tree(output), output.exists()) != before or Path(f"{output}.partial").exists():
            wrong.append("the output folder was touched")
        return f"{'; '.join(wrong)}\n      stderr: {error}" if wrong else ""

    def works(self, name, args, **limits):
        result = self.run(args, **limits)
        self.check(name, result.returncode == 0, f"exit code {result.returncode}: {result.stderr.strip()}")
        return result


def tree(folder):
    """SHA-256 of every file."""
    if not folder.is_dir():
        return {}
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


def parsed(text):
    """The one JSON value of a text, or None."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def tensors(folder):
    names = set()
    for shard in folder.glob("*.safetensors"):
        names |= set(read_header(shard)[0]) - {"__metadata__"}
    return names


def check_success(test, work):
    """Runs that must work, and what is made of their outputs."""
    awq = [*AWQ, *CALIB, "--model", TOY, "--quiet"]
    for name in ("awq", "awq2"):
        test.works(f"awq into {name}", [*awq, "--output", work.path(name)])
    test.check("two runs give the same bytes", tree(work.path("awq")) == tree(work.path("awq2")) != {},
               [name for name, digest in tree(work.path("awq")).items() if tree(work.path("awq2")).get(name) != digest])

    result = test.works("--overwrite", ["--plugin", "rtn", "--model", TOY, "--output", work.path("awq2"), "--overwrite", "--json", "--quiet"])
    test.check("--overwrite replaces everything", tree(work.path("awq2")) == tree(work.path("rtn")), "other files than of a fresh run")
    test.check("--json prints one object", isinstance(parsed(result.stdout), dict) and result.stderr == "", result.stderr)
    test.check("nothing is left beside the output", not list(work.folder.glob("awq2.*")), list(work.folder.glob("awq2.*")))

    result = test.works("plan --json", ["plan", "--plugin", "awq", "--model", TOY, "--json"])
    pairs = []
    json.loads(result.stdout, object_pairs_hook=lambda items: pairs.extend(key for key, _ in items) or dict(items))
    names = [name for name in pairs if name in tensors(TOY)]
    test.check("plan --json names each tensor once", sorted(names) == sorted(tensors(TOY)), sorted(set(tensors(TOY)) ^ set(names))[:5])
    for command in (["inspect", TOY], ["inspect", work.path("awq")], ["plugins", "list"], ["plugins", "info", "awq"],
                    ["verify", work.path("awq"), "--reference", TOY]):
        plain, machine = test.works(" ".join(map(str, command)), command), test.works(f"{command} --json", [*command, "--json"])
        test.check(f"{command} --json is JSON", isinstance(parsed(machine.stdout), (dict, list)) and plain.stdout, machine.stdout[:200])

    for policy, stored in (("skip", False), ("channel", True)):
        out = work.path("policy-" + policy)
        test.works(f"group_size_fallback={policy}", ["--plugin", "rtn", "--model", TOY, "--group-size", 512, "--quiet", "--output", out,
                                                      "--set", f"compression.quantization.group_size_fallback={policy}"])
        test.check(f"{policy}: a width that divides is quantized", "model.language_model.layers.0.mlp.down_proj.weight_packed" in tensors(out), "it is not")
        test.check(f"{policy}: another width", ("model.language_model.layers.0.mlp.up_proj.weight_packed" in tensors(out)) == stored, "wrong")

    test.works("rtn to two bits", ["--plugin", "rtn", "--model", TOY, "--scheme", "w2a16", "--quiet", "--output", work.path("two-bits")])
    test.works("verify of two bits", ["verify", work.path("two-bits"), "--reference", TOY, "--quiet"])

    bad = work.jsonl("skipped", "broken", chat(text("What is it?")))
    result = test.works("--skip-bad-samples", [*AWQ, "--model", TOY, "--calib", bad, "--skip-bad-samples", "--quiet", "--json", "--output", work.path("skipped")])
    test.check("--skip-bad-samples says which", "skipped.jsonl:1" in result.stdout + result.stderr, result.stdout + result.stderr)


def check_verify(test, work):
    """Exit code 3 for an output that was damaged after it was written."""
    packed = "model.language_model.layers.1.mlp.up_proj.weight_packed"
    scale = packed.replace("packed", "scale")
    norm = "model.language_model.norm.weight"
    file = "model.safetensors"
    for name, edit, says in [
        ("packed bytes", poke(packed, 0, bytes(range(256)) * 200), [r"layers\.1\.mlp\.up_proj"]),
        ("a scale of NaN", poke(scale, 0, b"\xc0\x7f" * 64), [r"layers\.1\.mlp\.up_proj"]),
        ("a norm", poke(norm, 0, b"\x00\x40" * 64), [norm.replace(".", r"\.")]),
        ("a tensor removed", header_edit(lambda header: header.__setitem__("unused", header.pop(packed))), [packed.replace(".", r"\.")]),
        ("a truncated file", truncated, [file]),
    ]:
        target = work.model("damaged_" + re.sub(r"\W", "_", name), {file: edit}, source=work.path("awq"))
        wrong = test.fails(Case("damaged output: " + name, ["verify", target, "--reference", TOY, "--quiet"], says, code=3), 0)
        test.check("verify of a damaged output: " + name, not wrong, wrong)


def check_interrupt(test, work):
    """SIGINT while samples are read: nothing is left. While blocks are quantized: what --resume needs."""
    for moment, kept in (("reading samples 2/", []), ("quantizing 6/", ["interrupted.partial"])):
        output = work.path("interrupted")
        command = [test.slim, "--plugin", "awq", "--set", "awq.grid=200", "--model", TOY, "--calib", SAMPLES / "calib.jsonl", "--num-samples", "32",
                   "--output", output]
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   env={**os.environ, "OMP_NUM_THREADS": "1"})
        lines = []
        for line in process.stderr:
            lines.append(line)
            if moment in line:
                process.send_signal(signal.SIGINT)
                break
        out, rest = process.communicate(timeout=TIMEOUT)
        errors = [line for line in rest.splitlines() if line.startswith("slim: error: ")]
        test.check(f"SIGINT at {moment!r}", process.returncode == 130 and len(errors) == 1 and not out,
                   f"exit code {process.returncode}, {rest[-500:]}")
        left = [path.name for path in work.folder.glob("interrupted*")]
        test.check(f"SIGINT at {moment!r} leaves {kept}", left == kept, left)
        test.check(f"SIGINT at {moment!r} says how to go on", ("--resume" in rest) == bool(kept), rest[-500:])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True, type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Workshop(scratch, options.build.resolve())
        work.mounts = []
        work.dense = unpacked(options.build, "toy-hunyuan-dense")
        test = Tester(options.build.resolve(), work, options.show)
        test.works("rtn", ["--plugin", "rtn", "--model", TOY, "--output", work.path("rtn"), "--quiet"])
        work.model("itself")
        work.path("precious").mkdir()
        work.write("precious/letter.txt", "keep me")
        try:
            groups = (checkpoint_cases, data_cases, nested_cases, usage_cases, disk_cases)
            cases = [case for group in groups for case in group(work) if options.only in case.name]
            with concurrent.futures.ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
                for case, wrong in zip(cases, pool.map(test.fails, cases, range(len(cases)))):
                    test.check(case.name, not wrong, wrong)
            if not options.only:
                check_success(test, work)
                check_verify(test, work)
                check_interrupt(test, work)
        finally:
            for mount in work.mounts:
                subprocess.run(["umount", mount], check=True)
    for failure in test.failures:
        print("FAILED", failure)
    print(f"{test.count} checks, {len(test.failures)} failed")
    return 1 if test.failures else 0


if __name__ == "__main__":
    sys.exit(main())
