#!/usr/bin/env python3
"""accuracy.py --build BUILD [--toys NAME...] [--only METHOD...] [--peer PYTHON] [--work FOLDER]: quality of every algorithm on the trained
toys, as Markdown.

--peer: a Python that has llm-compressor 0.14; its results on the same samples stand beside ours. All rows are judged by one
judge, `slim eval`, which reads both tools' checkpoints. KL divergence is to the bf16 original.
--work: results are kept there. The peer's are used again if its command, its script and the samples are the same.
--only: make the rows of these methods ("awq", "awq,gptq", "peer", ...) anew; all others are those of the last run with this --work."""
import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/tools"))
import packed_model

SAMPLES = ROOT / "tests/data/samples"
PEER = Path(__file__).with_name("peer_llmcompressor.py")
CALIBRATION = {"toy-qwen3vl": "calib.jsonl", "toy-qwen25vl": "calib.jsonl", "toy-hunyuan-dense": "calib_textqa.jsonl",
               "toy-hunyuan-moe": "calib_textqa.jsonl"}
OURS = (("rtn", "w4a16"), ("awq", "w4a16"), ("gptq", "w4a16"), ("awq,gptq", "w4a16"), ("rtn", "w4a16_asym"), ("awq", "w4a16_asym"),
        ("rtn", "w3a16"), ("awq", "w3a16"), ("gptq", "w3a16"), ("awq,gptq", "w3a16"),
        ("fp8", "fp8_static"), ("fp8", "fp8_dynamic"), ("fp8", "fp8_block"),
        ("int8", "w8a8"), ("smooth,int8", "w8a8"), ("int8", "w8a8_static"), ("smooth,int8", "w8a8_static"), ("sparse", "w8a8s"))
THEIRS = (("awq", "W4A16"), ("gptq", "W4A16"), ("awq", "W4A16_ASYM"), ("awq", "W3A16"), ("gptq", "W3A16"),
          ("rtn", "FP8"), ("rtn", "FP8_DYNAMIC"), ("rtn", "FP8_BLOCK"), ("rtn", "W8A8"))
HEADER = ("| method | KL, text | KL, answers | perplexity | answers right | seconds | peak memory |\n"
          "|---|---|---|---|---|---|---|")


def last_json_line(command):
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if result.returncode != 0:
        print(f"{' '.join(map(str, command))}\n{result.stderr[-2000:]}", file=sys.stderr)
        return None
    return json.loads(result.stdout.splitlines()[-1])


def digest(*files):
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def brief(scores):
    return {key: scores[key] for key in ("text_kl", "answers_kl", "text_perplexity", "answers_exact") if key in scores}


def line(name, scores, seconds="", memory=""):
    exact = scores.get("answers_exact")
    return (f"| {name} | {scores.get('text_kl', 0):.5f} | {scores.get('answers_kl', 0):.5f} | {scores['text_perplexity']:.4f} | "
            f"{'' if exact is None else format(exact, '.1%')} | {seconds} | {memory} |")


class Toy:
    def __init__(self, name, build, work):
        self.name, self.work = name, work
        self.slim = build / "bin/slim"
        self.model = packed_model.unpacked(build, name)
        self.calibration = SAMPLES / CALIBRATION[name]

    def judge(self, folder):
        return last_json_line([self.slim, "eval", folder, "--reference", self.model, "--data", SAMPLES, "--json", "--quiet"])

    def ours(self, plugin, scheme):
        folder = self.work / f"{self.name}-slim-{plugin.replace(',', '-')}-{scheme}"
        run = last_json_line([self.slim, "--plugin", plugin, "--model", self.model, "--calib", self.calibration, "--scheme", scheme,
                              "--output", folder, "--overwrite", "--json", "--quiet"])
        return folder, run and (f"{run['seconds']:.1f}", f"{run['peak_rss_bytes'] / 2**20:.0f} MiB")

    def theirs(self, python, method, scheme):
        folder = self.work / f"{self.name}-peer-{method}-{scheme}"
        record = folder / "bench.json"
        inputs = digest(PEER, self.calibration, *sorted(self.model.glob("*.safetensors")))
        run = json.loads(record.read_text()) if record.exists() else {}
        if run.get("inputs") != inputs:
            shutil.rmtree(folder, ignore_errors=True)
            run = last_json_line([python, PEER, self.model, self.calibration, folder, method, scheme])
            if run is None:
                return folder, None
            record.write_text(json.dumps(run | {"inputs": inputs}))
        return folder, (f"{run['seconds']:.1f}", f"{run['peak_rss_mib']} MiB")

    def row(self, name, make, again):
        """Scores and cost: made and judged, or those of the last run."""
        record = self.work / f"{self.name} {name}.json"
        if not again and record.exists():
            return json.loads(record.read_text())
        folder, cost = make()
        scores = cost and self.judge(folder)
        if not scores:
            return None
        result = {"cost": cost, "reference": brief(scores["reference"]), "scores": brief(scores)}
        record.write_text(json.dumps(result))
        return result

    def rows(self, python, only):
        for method, scheme in OURS:
            name = f"slim {method} {scheme}"
            yield name, self.row(name, lambda: self.ours(method, scheme), not only or method in only)
        for method, scheme in THEIRS if python else ():
            name = f"llm-compressor {method} {scheme}"
            yield name, self.row(name, lambda: self.theirs(python, method, scheme), not only or "peer" in only)

    def table(self, python, only):
        print(f"\n## {self.name}\n\nCalibrated on `{self.calibration.name}`:\n\n{HEADER}", flush=True)
        first = True
        for name, result in self.rows(python, only):
            if not result:
                continue
            if first:
                print(line("bf16", result["reference"]))
            first = False
            print(line(name, result["scores"], *result["cost"]), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--toys", nargs="*", default=list(CALIBRATION), choices=list(CALIBRATION))
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--peer")
    parser.add_argument("--work", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        for name in arguments.toys:
            Toy(name, arguments.build, work).table(arguments.peer, arguments.only)


if __name__ == "__main__":
    main()
