"""Parquet files as calibration data, through the programs.

Tables of every layout give the token ids and pixels of the same samples in JSONL; rows that are not needed are not read; without the
Arrow component slim runs, and says what is missing.
"""
import json
import shutil
import sys
from pathlib import Path

from data_runs import run_checks
from kit import SAMPLES

COMPONENT = "lib/slim/components/libslim_parquet.so"


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


def check_layouts(checks, slim, pa, pq):
    """One set of samples in the layouts of public data sets."""
    work = slim.work
    rows = [(image, question, answer) for image, question, answer in map(fields, calibration_chats(12)) if image][:6]
    lines = [json.dumps({"question": q, "answer": a, "image": str(image)}) for image, q, a in rows]
    shutil.copytree(SAMPLES / "images", work / "images")
    (work / "expected.jsonl").write_text("\n".join(lines))
    expected = slim.tokens(work / "expected.jsonl")
    checks.expect(isinstance(expected, dict) and len(expected) == 3 * len(rows), "JSONL", expected)
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
        checks.expect(found == expected, f"{name}: as JSONL", found if isinstance(found, str) else "other tokens or pixels")
    pq.write_table(pa.table({"text": ["one text", "and another"]}), work / "text.parquet")
    (work / "text.txt").write_text("one text\nand another\n")
    checks.expect(slim.tokens(work / "text.parquet") == slim.tokens(work / "text.txt"), "a text column")
    (work / "folder").mkdir()
    pq.write_table(pa.table({"text": ["one text"]}), work / "folder" / "train-00000-of-00002.parquet")
    pq.write_table(pa.table({"text": ["and another"]}), work / "folder" / "train-00001-of-00002.parquet")
    checks.expect(slim.tokens(work / "folder") == slim.tokens(work / "text.txt"), "a folder of tables")


def check_rows(checks, slim, pa, pq):
    """Rows beyond num_samples are not read: these are damaged, and found only when they are wanted."""
    work = slim.work
    table = work / "damaged.parquet"
    texts = [f"text number {i}, long enough to be found in the file" for i in range(40)]
    pq.write_table(pa.table({"text": texts, "other": ["!" * 5000] * 40}), table, compression="none", row_group_size=8, use_dictionary=False)
    data = table.read_bytes()
    begin = data.index(b"text number 16,")
    table.write_bytes(data[:begin - 40] + bytes(200) + data[begin + 160:])
    code, report = slim.quantize(table, "--num-samples", 8, "--batch-size", 8)
    checks.expect(code == 0 and [s["origin"] for s in report["by_sample"]] == [f"damaged.parquet:{i + 1}" for i in range(8)], "first row group", report)
    code, error = slim.quantize(table)
    checks.expect(code == 1 and "damaged.parquet" in error and "\n" not in error, "damaged row group", error)
    code, report = slim.quantize(SAMPLES / "calib.parquet", "--num-samples", 5, "--shuffle", "--seed", 3)
    again = slim.quantize(SAMPLES / "calib.parquet", "--num-samples", 5, "--shuffle", "--seed", 3)[1]
    rows = [int(sample["origin"].split(":")[1]) for sample in report["by_sample"]]
    checks.expect(code == 0 and report == again and len(rows) == 5 and rows != sorted(rows), "rows drawn at random", report)
    pq.write_table(pa.table({"id": [1], "title": ["what?"]}), work / "columns.parquet")
    code, error = slim.quantize(work / "columns.parquet")
    checks.expect(code == 1 and all(word in error for word in ("columns.parquet", "'id', 'title'", "question", "dataset.columns")), "wrong columns", error)
    pq.write_table(pa.table({"text": pa.array([1_000_000], pa.timestamp("s"))}), work / "type.parquet")
    code, error = slim.quantize(work / "type.parquet")
    checks.expect(code == 1 and "timestamp[" in error and "'text'" in error, "a type that is no text", error)


def check_component(checks, slim):
    """Without Arrow slim works, but for parquet."""
    work = slim.work
    lib = work / "lib"
    lib.mkdir()
    shutil.copy(slim.build / "lib/libslim_core.so", lib)
    program = {"LD_LIBRARY_PATH": str(lib), "SLIM_PLUGIN_PATH": str(slim.build / "lib/slim/plugins")}
    code, error = slim.quantize(SAMPLES / "calib.parquet", program=program)
    checks.expect(code == 1 and all(word in error for word in ("calib.parquet", COMPONENT, "pyarrow", ".jsonl")), "component missing", error)
    code, report = slim.quantize(SAMPLES / "calib.jsonl", "--num-samples", 2, program=program)
    checks.expect(code == 0, "JSONL without the component", report)
    (work / COMPONENT).parent.mkdir(parents=True)
    (work / COMPONENT).write_text("no library")
    code, error = slim.quantize(SAMPLES / "calib.parquet", program=program)
    checks.expect(code == 1 and all(word in error for word in ("cannot be loaded", "libslim_parquet.so", "pyarrow")), "component damaged", error)


def check_tables(checks, slim):
    if not (slim.build / COMPONENT).exists():
        print("skipped: tables (slim was built without Arrow)")
        return
    import pyarrow as pa
    import pyarrow.parquet as pq
    check_layouts(checks, slim, pa, pq)
    check_rows(checks, slim, pa, pq)


if __name__ == "__main__":
    sys.exit(run_checks(check_tables, check_component))
