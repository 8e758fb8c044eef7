"""Every trained toy, quantized by AWQ: transformers loads it with no key missing or unexpected, computes the logits that slim's own
dequantized forward computes, and gives the answers that `slim eval` gives."""
import json
import os
import sys
import tempfile
from pathlib import Path

import torch

from kit import SAMPLES, build_folder, unpacked
from toy_oracle import NEW_TOKENS, TOYS, Reference, native_logits, slim

os.environ.setdefault("SLIM_PRODUCTS", "native")  # LibTorch's own products of bf16, as transformers computes them
QUESTIONS = 12
LARGEST_KL = 1e-4  # mean KL between the two implementations of one checkpoint, bf16


def quantize(build, toy, output):
    slim(build, "--plugin", "awq", "--model", unpacked(build, toy), "--calib", SAMPLES / TOYS[toy][1], "--num-samples", 48,
         "--scheme", "w4a16", "--set", "awq.grid=5", "--set", "awq.refine=0", "--set", "awq.clip=none", "--output", output)


def check_logits(build, folder, reference, batch):
    """Mean KL(transformers || slim) over all tokens."""
    kl, tokens = 0.0, 0
    for inputs, ours in zip(batch, native_logits(build, folder, batch, "bfloat16")):
        theirs = reference.logits(inputs).log_softmax(-1)
        kl += (theirs.exp() * (theirs - ours.log_softmax(-1))).sum().item()
        tokens += len(theirs)
    return kl / tokens


def check_toy(build, toy, work):
    folder = work / toy
    quantize(build, toy, folder)
    reference = Reference(folder, torch.bfloat16)
    wrong = {key: names for key, names in reference.loading.items() if names}
    file = TOYS[toy][0][1]
    chats = [json.loads(line)["messages"] for line in (SAMPLES / file).read_text().splitlines()[:QUESTIONS]]
    texts = (SAMPLES / "eval_text.txt").read_text().splitlines()[:4]
    questions = [reference.question(messages) for messages in chats]
    kl = check_logits(build, folder, reference, questions + [reference.text(line) for line in texts])
    answers = [reference.answer(inputs) for inputs in questions]
    found = slim(build, "eval", folder, "--data", SAMPLES / file, "--limit", QUESTIONS, "--max-new-tokens", NEW_TOKENS)["files"][file]["answers"]
    same = sum(a == b for a, b in zip(found, answers))
    good = not wrong and kl <= LARGEST_KL and found == answers
    print(f"{'ok    ' if good else 'FAILED'} {toy}: keys {wrong or 'as expected'}, KL {kl:.2e}, {same} of {len(answers)} answers equal", flush=True)
    return good


def main():
    build = build_folder()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        good = [check_toy(build, toy, Path(name)) for toy in TOYS]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
