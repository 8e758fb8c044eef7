"""Ids and texts of the native tokenizer equal those of the tokenizers library, for generated strings of every kind.

usage: python tests/oracle/test_tokenizer.py --build BUILD_DIR [--models FOLDER...] [--strings N]
"""
import argparse
import json
import lzma
import os
import random
import subprocess
import sys
from pathlib import Path

import tokenizers

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
SPACES = " \t\n\r\v\f\u0085\u00a0\u1680\u180e\u2000\u2003\u2009\u200b\u2028\u2029\u202f\u205f\u2060\u3000\ufeff\x1c\x1f\0"
MARKS = "\u0300\u0301\u0308\u0316\u0323\u0327\u0334\u0345\u035c\u05b0\u064b\u093c\u0e38\u3099\u309a\u20d0\u1abf\U00011930"
PIECES = [
    "I'm", "you'RE", "it'S", "it'\u017f", "we'VE", "'ll", "'D", "don\u2019t", "'\u212a", "O'T'M", "e\u0301", "A\u030a", "\u212b",
    "\ufb01", "\u1e9e", "stra\u00dfe", "\u1112\u1161\u11ab", "\ud55c\uad6d\uc5b4", "\u6f22\u5b57", "\u3042\u3044", "\u4f60\u597d\u3002",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\U0001f44d\U0001f3fd", "\u05e9\u05dc\u05d5\u05dd",
    "\u0645\u0631\u062d\u0628\u0627", "\u202eabc\u202c", "123", "1,234.56", "\u0661\u0662", "\u00b2\u00bd\u2167", "0x1F", "...", "?!",
    "->", "==", "#$%", "\r\n", "\n\n", "  ", "   \n", "\t\t", "Hello", " world", " the", "caf\u00e9", "\u017fi", "\ud7a3", "_", "a_b",
    "http://x.y/z?q=1", "\U00030000", "\U0001e4ec", "\U000105d2\u0307", "\U00011935\U00011930", "\u0bc6\u0bbe", "\u0378", "\uffff",
]


def category_strings():
    """Every code point of all planes: alone in its surroundings, and in its order between marks."""
    out = []
    for start in range(0, len(CODE_POINTS), 256):
        block = [chr(c) for c in CODE_POINTS[start : start + 256]]
        out.append("".join(block))
        out.append("".join("a" + ch + " " + ch + "1" for ch in block))
        out.append("".join("x\u0301" + ch + "\u0316" + ch for ch in block))
    return out


def random_strings(count, specials, rng):
    def one(length):
        kind = rng.random()
        if kind < 0.45:
            return rng.choice(PIECES)
        if kind < 0.60:
            return rng.choice(SPACES) * rng.choice((1, 1, 2, 5))
        if kind < 0.70:
            return chr(rng.choice(CODE_POINTS))
        if kind < 0.78:
            return chr(rng.randrange(0x20, 0x250))
        if kind < 0.84:
            return rng.choice("aeoun\u05d0\u0915\u304b\u4e00") + "".join(rng.choices(MARKS, k=rng.randrange(1, 5)))
        if kind < 0.90:
            return "".join(rng.choices("0123456789", k=rng.randrange(1, 8)))
        if kind < 0.93:
            return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.choice((3, 9, 200))))
        token = rng.choice(specials)
        return token if rng.random() < 0.7 else token[: rng.randrange(len(token)) + 1]

    return ["".join(one(n) for _ in range(n)) for n in (rng.randrange(0, 24) for _ in range(count))]


def native(build, path, texts, ids):
    request = json.dumps({"texts": texts, "ids": ids}, ensure_ascii=True)
    done = subprocess.run([build / "bin" / "slim_tokenize", path], input=request.encode(), capture_output=True)
    if done.returncode != 0:
        sys.exit(f"{path}: {done.stderr.decode()}")
    return json.loads(done.stdout)


def check(build, path, name, texts, seed):
    reference = tokenizers.Tokenizer.from_file(str(path))
    specials = [t.content for t in reference.get_added_tokens_decoder().values()]
    rng = random.Random(seed)
    texts = texts + random_strings(args.strings, specials, rng)
    expected = [e.ids for e in reference.encode_batch(texts)]
    size = reference.get_vocab_size()
    id_lists = expected[-args.strings :] + [[rng.randrange(size + 3) for _ in range(rng.randrange(12))] for _ in range(2000)]
    got = native(build, path, texts, id_lists)
    bad = [i for i, (a, b) in enumerate(zip(expected, got["ids"])) if a != b]
    for i in bad[:5]:
        print(f"{name}: ids differ for {texts[i]!r}\n  expected {expected[i]}\n  found    {got['ids'][i]}")
    wrong = 0
    for skip in (True, False):
        decoded = reference.decode_batch(id_lists, skip_special_tokens=skip)
        for ids, a, b in zip(id_lists, decoded, (t[0 if skip else 1] for t in got["texts"])):
            if a != b:
                wrong += 1
                if wrong <= 5:
                    print(f"{name}: texts differ for {ids}\n  expected {a!r}\n  found    {b!r}")
    if got["vocab_size"] != size:
        wrong += 1
        print(f"{name}: vocabulary of {got['vocab_size']}, expected {size}")
    print(f"{name}: {len(texts)} strings, {sum(map(len, expected))} tokens: {len(bad)} differ; "
          f"{2 * len(id_lists)} decodings: {wrong} differ")
    return not bad and not wrong


def variants(build):
    """Tokenizers made from a toy one: features that real files have and the toys lack."""
    base = json.loads((DATA / "toy-qwen3vl" / "tokenizer.json").read_text())
    split = base["pre_tokenizer"]["pretokenizers"][0]

    def made(name, **change):
        path = build / f"tokenizer-{name}.json"
        path.write_text(json.dumps({**base, **change}))
        return path, name

    def token(i, content, **flags):
        plain = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=False)
        return {"id": 1900 + i, "content": content, **plain, **flags}

    added = [token(0, "abc", single_word=True), token(1, "<l>", lstrip=True), token(2, "<r>", rstrip=True, special=True),
             token(3, "<lr>", lstrip=True, rstrip=True), token(4, "caf\u00e9", normalized=True), token(5, "<l><r>"),
             token(6, "e\u0301", normalized=True, single_word=True), token(7, " Hello", normalized=True), token(8, "12")]
    first = max(t["id"] for t in base["added_tokens"]) + 1
    for i, t in enumerate(added):
        t["id"] = first + i
    yield made("added", added_tokens=base["added_tokens"] + added)
    yield made("plain", normalizer=None, pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                                                        "use_regex": True})
    for behavior in ("Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        for invert in (False, True):
            digits = {**split, "pattern": {"Regex": "\\p{N}{1,3}|\\s+"}, "behavior": behavior, "invert": invert}
            pre = {"type": "Sequence", "pretokenizers": [digits, split, base["pre_tokenizer"]["pretokenizers"][1]]}
            yield made(f"{behavior}-{invert}", pre_tokenizer=pre)
    literal = {**split, "pattern": {"String": "a.b"}, "behavior": "Isolated"}
    yield made("literal", pre_tokenizer={"type": "Sequence", "pretokenizers": [
        literal, {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}]})
    special = {"<|im_start|>": {"id": "<|im_start|>", "ids": [1793], "tokens": ["<|im_start|>"]},
               "<|im_end|>": {"id": "<|im_end|>", "ids": [1794, 1795], "tokens": ["<|im_end|>", "x"]}}
    yield made("template", post_processor={"type": "Sequence", "processors": [base["post_processor"], {
        "type": "TemplateProcessing", "special_tokens": special,
        "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                   {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]}]})
    yield made("ignore-merges", model={**base["model"], "ignore_merges": True, "merges": base["model"]["merges"][:200]})


def unpacked(build):
    path = build / "qwen3-tokenizer.json"
    path.write_bytes(lzma.decompress((DATA / "tokenizers" / "qwen3" / "tokenizer.json.xz").read_bytes()))
    return path


parser = argparse.ArgumentParser()
parser.add_argument("--build", type=Path, required=True)
parser.add_argument("--models", type=Path, nargs="*", default=sorted(p.parent for p in DATA.glob("toy-*/tokenizer.json")))
parser.add_argument("--strings", type=int, default=10000)
args = parser.parse_args()
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

everything = category_strings()
good = True
good &= check(args.build, unpacked(args.build), "qwen3", everything, 99)
for seed, folder in enumerate(args.models):
    good &= check(args.build, folder / "tokenizer.json", folder.name, [], seed)
args.strings = max(1, args.strings // 5)
for seed, (path, name) in enumerate(variants(args.build)):
    words = ["".join("abc" + chr(c) + "<l>" + chr(c) + "<r>" + chr(c) for c in CODE_POINTS[i : i + 256]) for i in range(0, 0x32000, 256)]
    good &= check(args.build, path, name, words if name == "added" else [], 100 + seed)
sys.exit(0 if good else 1)
