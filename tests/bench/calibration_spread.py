#!/usr/bin/env python3
"""calibration_spread.py --build BUILD [--toy NAME] [--scheme NAME] [--plugins NAME...] [--set KEY=VALUE...]: how far the KL divergence on
eval_text.txt moves with the samples of the calibration, as Markdown.

Disjoint sets of 128 samples of nearly the same mixture as calib.jsonl: that file, and three made of eval.jsonl and eval_textqa.jsonl, whose
questions are no part of the text that judges."""
import argparse
import statistics
import tempfile
from pathlib import Path

from accuracy import SAMPLES, last_json_line, packed_model

WITH_IMAGE, WITHOUT_IMAGE = 85, 43  # calib.jsonl: 86 and 42


def calibration_sets(folder):
    pictures = (SAMPLES / "eval.jsonl").read_text().splitlines()
    questions = (SAMPLES / "eval_textqa.jsonl").read_text().splitlines()
    for linked in ("eval_images", "images", "calib_images"):
        (folder / linked).symlink_to(SAMPLES / linked)
    yield SAMPLES / "calib.jsonl"
    for number in range(3):
        lines = [lines[number * count + i] for lines, count in ((pictures, WITH_IMAGE), (questions, WITHOUT_IMAGE)) for i in range(count)]
        file = folder / f"set{number}.jsonl"
        file.write_text("\n".join(lines) + "\n")
        yield file


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--toy", default="toy-qwen25vl", choices=["toy-qwen25vl", "toy-qwen3vl"])
    parser.add_argument("--scheme", default="w3a16")
    parser.add_argument("--plugins", nargs="*", default=["awq", "awq,gptq"])
    parser.add_argument("--set", nargs="*", default=[])
    arguments = parser.parse_args()
    slim, model = arguments.build / "bin/slim", packed_model.unpacked(arguments.build, arguments.toy)
    print("| plugins | set 1 | set 2 | set 3 | set 4 | mean | deviation |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        sets = list(calibration_sets(Path(scratch)))
        for plugin in arguments.plugins:
            values = []
            for calibration in sets:
                last_json_line([slim, "--plugin", plugin, "--model", model, "--calib", calibration, "--allow-outside", "--scheme",
                                arguments.scheme, "--output", f"{scratch}/out", "--overwrite", "--json", "--quiet",
                                *(word for setting in arguments.set for word in ("--set", setting))])
                values.append(last_json_line([slim, "eval", f"{scratch}/out", "--reference", model, "--data", SAMPLES / "eval_text.txt",
                                              "--no-generate", "--json", "--quiet"])["text_kl"])
            cells = [*values, statistics.mean(values), statistics.stdev(values)]
            print(f"| {plugin} | " + " | ".join(f"{value:.5f}" for value in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
