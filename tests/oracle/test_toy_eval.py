"""`slim eval` of every trained toy against transformers: the same tokens, perplexity to 0.1 %, the same answers."""
import sys

import torch

from kit import SAMPLES, build_folder, unpacked
from toy_oracle import NEW_TOKENS, TOYS, Reference, slim

LIMIT = 16
RELATIVE = 1e-3


def check_file(build, folder, reference, file):
    expected = reference.evaluate(file, LIMIT)
    found = slim(build, "eval", folder, "--data", SAMPLES / file, "--dtype", "float32", "--limit", LIMIT, "--batch-size", 5,
                 "--max-new-tokens", NEW_TOKENS)["files"][file]
    same = sum(a == b for a, b in zip(found.get("answers", []), expected.get("answers", [])))
    good = found["tokens"] == expected["tokens"] and found.get("answers") == expected.get("answers")
    good &= abs(found["perplexity"] / expected["perplexity"] - 1) <= RELATIVE
    answers = f", {same} of {len(expected['answers'])} answers equal" if "answers" in expected else ""
    print(f"{'ok    ' if good else 'FAILED'} {folder.name} {file}: perplexity {found['perplexity']:.6f}, expected "
          f"{expected['perplexity']:.6f}; {found['tokens']:.0f} of {expected['tokens']} tokens{answers}", flush=True)
    return good


def main():
    build = build_folder()
    torch.set_num_threads(1)
    good = True
    for toy, (files, _) in TOYS.items():
        folder = unpacked(build, toy)
        reference = Reference(folder, torch.float32)
        for file in files:
            good &= check_file(build, folder, reference, file)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
