"""Calibration data as users have them: parquet, text, folders and limits, through the programs.

Tables of every layout must give the token ids and pixels of the same samples in JSONL; rows that are not needed are not read;
without the Arrow component slim runs, and says what is missing. The report counts tokens by sample and by kind.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[2]
TOY, SAMPLES = ROOT / "tests/data/toy-qwen3vl", ROOT / "tests/data/samples"
COMPONENT = "lib/slim/components/libslim_parquet.so"
FAST = ["--plugin", "awq", "--set", "awq.grid=1", "--set", "awq.refine=0", "--set", "awq.rows=8", "--set", "awq.clip=none", "--quiet"]


class Checks:
    def __init__(self):
        self.failures, self.count = [], 0

    def that(self, good, name, why=""):
        self.count += 1
        if not good:
            self.failures.append(f"{name}: {why}")
            print("FAILED", self.failures[-1], flush=True)


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


def calibration_chats(count):
    lines = (SAMPLES / "calib.jsonl").read_text().splitlines()
    return [json.loads(line)["messages"] for line in lines[:count]]


def fields(messages):
    """(image's path or None, question, answer)"""
    parts = messages[0]["content"]
    image = next((part["image"] for part in parts if part["type"] == "image"), None)
    return image, next(part["text"] for part in parts if part["type"] == "text"), messages[1]["content"][0]["text"]


def picture(path):
    return {"bytes": (SAMPLES / path).read_bytes(), "path": Path(path).name}


def check_layouts(checks, slim, work, pa, pq):
    """One set of samples in the layouts of public data sets."""
    rows = [(image, question, answer) for image, question, answer in map(fields, calibration_chats(12)) if image][:6]
    lines = [json.dumps({"question": q, "answer": a, "image": str(image)}) for image, q, a in rows]
    shutil.copytree(SAMPLES / "images", work / "images")
    (work / "expected.jsonl").write_text("\n".join(lines))
    expected = slim.tokens(work / "expected.jsonl")
    checks.that(isinstance(expected, dict) and len(expected) == 3 * len(rows), "JSONL", expected)
    turn = lambda role, content: {"role": role, "content": content}
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    layouts = {
        "ChartQA": {"image": pa.array([picture(i) for i, _, _ in rows], image_type), "query": [q for _, q, _ in rows],
                    "label": [[a, "other"] for _, _, a in rows], "human_or_machine": [1] * len(rows)},
        "images, question, answer": {"images": [[picture(i)] for i, _, _ in rows], "question": [q for _, q, _ in rows],
                                     "answer": [a for _, _, a in rows], "id": pa.array([b"x"] * len(rows))},
        "bytes alone": {"image": pa.array([picture(i)["bytes"] for i, _, _ in rows], pa.large_binary()),
                        "question": pa.array([q for _, q, _ in rows], pa.large_string()), "answer": [a for _, _, a in rows]},
        "paths": {"image": [str(i) for i, _, _ in rows], "question": pa.array([q for _, q, _ in rows]).dictionary_encode(),
                  "answer": [a for _, _, a in rows]},
        "messages": {"messages": [[turn("user", "<image>" + q), turn("assistant", a)] for _, q, a in rows],
                     "images": [[picture(i)] for i, _, _ in rows]},
        "message parts": {"messages": [[turn("user", [{"type": "image", "text": None}, {"type": "text", "text": q}]),
                                        turn("assistant", [{"type": "text", "text": a}])] for _, q, a in rows],
                          "images": [[picture(i)] for i, _, _ in rows]},
        "conversations": {"conversations": [[{"from": "human", "value": "<image>" + q}, {"from": "gpt", "value": a}] for _, q, a in rows],
                          "image": [picture(i) for i, _, _ in rows]},
    }
    for compression, (name, columns) in zip(["snappy", "zstd", "gzip", "none", "brotli", "snappy", "lz4"], layouts.items()):
        pq.write_table(pa.table(columns), work / "layout.parquet", compression=compression, row_group_size=4)
        found = slim.tokens(work / "layout.parquet")
        checks.that(found == expected, f"{name}: as JSONL", found if isinstance(found, str) else "other tokens or pixels")
    pq.write_table(pa.table({"text": ["one text", "and another"]}), work / "text.parquet")
    (work / "text.txt").write_text("one text\nand another\n")
    checks.that(slim.tokens(work / "text.parquet") == slim.tokens(work / "text.txt"), "a text column")
    (work / "folder").mkdir()
    pq.write_table(pa.table({"text": ["one text"]}), work / "folder" / "train-00000-of-00002.parquet")
    pq.write_table(pa.table({"text": ["and another"]}), work / "folder" / "train-00001-of-00002.parquet")
    checks.that(slim.tokens(work / "folder") == slim.tokens(work / "text.txt"), "a folder of tables")


def check_rows(checks, slim, work, pa, pq):
    """Rows beyond num_samples are not read: these are damaged, and found only when they are wanted."""
    table = work / "damaged.parquet"
    texts = [f"text number {i}, long enough to be found in the file" for i in range(40)]
    pq.write_table(pa.table({"text": texts, "other": ["!" * 5000] * 40}), table, compression="none", row_group_size=8, use_dictionary=False)
    data = table.read_bytes()
    begin = data.index(b"text number 16,")
    table.write_bytes(data[:begin - 40] + bytes(200) + data[begin + 160:])
    code, report = slim.quantize(table, "--num-samples", 8, "--batch-size", 8)
    checks.that(code == 0 and [s["origin"] for s in report["by_sample"]] == [f"damaged.parquet:{i + 1}" for i in range(8)], "first row group", report)
    code, error = slim.quantize(table)
    checks.that(code == 1 and "damaged.parquet" in error and "\n" not in error, "damaged row group", error)
    code, report = slim.quantize(SAMPLES / "calib.parquet", "--num-samples", 5, "--shuffle", "--seed", 3)
    again = slim.quantize(SAMPLES / "calib.parquet", "--num-samples", 5, "--shuffle", "--seed", 3)[1]
    other = slim.quantize(SAMPLES / "calib.parquet", "--num-samples", 5, "--shuffle", "--seed", 4)[1]
    checks.that(code == 0 and report == again and report["samples"] == 5 and report != other, "rows drawn at random", report)
    pq.write_table(pa.table({"id": [1], "prompt": ["what?"]}), work / "columns.parquet")
    code, error = slim.quantize(work / "columns.parquet")
    checks.that(code == 1 and all(word in error for word in ("columns.parquet", "'id', 'prompt'", "question", "rename")), "wrong columns", error)
    pq.write_table(pa.table({"text": pa.array([1_000_000], pa.timestamp("s"))}), work / "type.parquet")
    code, error = slim.quantize(work / "type.parquet")
    checks.that(code == 1 and "timestamp[s]" in error and "'text'" in error, "a type that is no text", error)


def check_component(checks, slim, work):
    """Without Arrow slim works, but for parquet."""
    lib = work / "lib"
    lib.mkdir()
    shutil.copy(slim.build / "lib/libslim_core.so", lib)
    program = {"LD_LIBRARY_PATH": str(lib), "SLIM_PLUGIN_PATH": str(slim.build / "lib/slim/plugins")}
    code, error = slim.quantize(SAMPLES / "calib.parquet", program=program)
    checks.that(code == 1 and all(word in error for word in ("calib.parquet", COMPONENT, "pyarrow", ".jsonl")), "component missing", error)
    code, report = slim.quantize(SAMPLES / "calib.jsonl", "--num-samples", 2, program=program)
    checks.that(code == 0, "JSONL without the component", report)
    (work / COMPONENT).parent.mkdir(parents=True)
    (work / COMPONENT).write_text("no library")
    code, error = slim.quantize(SAMPLES / "calib.parquet", program=program)
    checks.that(code == 1 and all(word in error for word in ("cannot be loaded", "libslim_parquet.so", "pyarrow")), "component damaged", error)


def check_text(checks, slim, work):
    """Lines, whole files, and pieces of files."""
    words = "The green square is left of the red circle. "
    (work / "books").mkdir()
    (work / "books/a.txt").write_text(words * 20 + "\n" + words * 3 + "\n")
    (work / "books/b.txt").write_text(words * 6)
    size = ["--max-seq-length", 64, "--batch-size", 4]
    counts = {}
    for unit in ("lines", "file", "pieces"):
        code, report = slim.quantize(work / "books", *size, "--set", f"dataset.text={unit}")
        checks.that(code == 0, unit, report)
        counts[unit] = [(sample["origin"], sample["text_tokens"]) for sample in report["by_sample"]]
    checks.that([origin for origin, _ in counts["lines"]] == ["a.txt:1", "a.txt:2", "b.txt:1"], "lines", counts["lines"])
    checks.that(counts["file"][0] == ("a.txt", 64) and [origin for origin, _ in counts["file"]] == ["a.txt", "b.txt"], "whole files", counts["file"])
    whole = {name: sum(tokens for origin, tokens in counts["pieces"] if origin.startswith(name)) for name in ("a.txt", "b.txt")}
    lengths = [slim.length((work / "books" / name).read_text()) for name in whole]
    checks.that(list(whole.values()) == lengths and max(tokens for _, tokens in counts["pieces"]) == 64, "pieces hold every token", (whole, lengths))
    code, drawn = slim.quantize(work / "books", *size, "--set", "dataset.text=pieces", "--num-samples", 2, "--shuffle")
    checks.that(code == 0 and drawn["samples"] == 2, "pieces drawn at random", drawn)


def check_report(checks, slim, work):
    """Tokens by kind and by sample; what was made smaller or dropped is named."""
    data = SAMPLES / "calib.jsonl"
    code, report = slim.quantize(data, "--num-samples", 12)
    samples = report["by_sample"]
    checks.that(code == 0 and report["samples"] == len(samples) == 12, "as many as asked for", report)
    for kind in ("text_tokens", "image_tokens"):
        checks.that(report[kind] == sum(sample[kind] for sample in samples) > 0, f"{kind} are the samples' sum", report)
    encoded = slim.tokens(data)
    checks.that(all(s["text_tokens"] + s["image_tokens"] == len(encoded[f"{i}.input_ids"]) for i, s in enumerate(samples)), "tokens of each sample", samples)
    limit = max(s["text_tokens"] for s in samples) + 8
    code, smaller = slim.quantize(data, "--num-samples", 12, "--max-seq-length", limit)
    named = [sample["origin"] for sample in smaller["by_sample"] if sample.get("downscaled")]
    checks.that(code == 0 and len(named) == smaller["downscaled"] > 0, "downscaled samples are named", smaller)
    with_image = sum(s["image_tokens"] > 0 for s in samples)
    code, dropped = slim.quantize(data, "--num-samples", 12, "--max-seq-length", 8)
    checks.that(code == 0 and len(dropped["left_out"]) == with_image and all("calib.jsonl:" in why and "do not fit into 8 tokens" in why for why in dropped["left_out"]),
                "samples whose images do not fit are dropped and named", dropped)
    code, asked = slim.quantize(SAMPLES / "calib_images", "--num-samples", 2, "--calib-prompt", "What is it?")
    longer = slim.quantize(SAMPLES / "calib_images", "--num-samples", 2, "--calib-prompt", "What is it? And why?")[1]
    checks.that(code == 0 and longer["text_tokens"] > asked["text_tokens"] and longer["image_tokens"] == asked["image_tokens"], "--calib-prompt", (asked, longer))


def check_outside(checks, slim, work):
    """No path of a data set leaves its folder unless that is allowed."""
    (work / "set").mkdir()
    shutil.copy(SAMPLES / "images/0001.png", work / "outside.png")
    (work / "set/link.png").symlink_to(work / "outside.png")
    for name in ("../outside.png", str(work / "outside.png"), "link.png", "file://" + str(work / "outside.png")):
        line = json.dumps({"question": "What is it?", "answer": "a cross", "image": name})
        (work / "set/data.jsonl").write_text('{"text": "first"}\n' + line + "\n")
        code, error = slim.quantize(work / "set/data.jsonl")
        checks.that(code == 1 and all(word in error for word in ("data.jsonl:2: ", "outside", "--allow-outside")), f"{name} is refused", error)
        code, report = slim.quantize(work / "set/data.jsonl", "--allow-outside")
        checks.that(code == 0 and report["image_tokens"] > 0, f"{name} is allowed", report)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", type=lambda text: Path(text).resolve(), required=True)
    build = parser.parse_args().build
    checks = Checks()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        slim = Slim(build, work)
        if (build / COMPONENT).exists():
            import pyarrow as pa
            import pyarrow.parquet as pq
            check_layouts(checks, slim, work, pa, pq)
            check_rows(checks, slim, work, pa, pq)
        else:
            print("skipped: parquet (built without Arrow)")
        check_component(checks, slim, work)
        check_text(checks, slim, work)
        check_report(checks, slim, work)
        check_outside(checks, slim, work)
        print(f"{checks.count} checks, {len(checks.failures)} failed, {slim.runs} runs")
    return 1 if checks.failures else 0


if __name__ == "__main__":
    sys.exit(main())
