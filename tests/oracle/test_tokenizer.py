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


def families(build):
    """Tokenizers as other families store theirs, trained on a little text: sentencepiece pairs, digits, punctuation, unigrams."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    lines = (DATA / "samples" / "calib_text.txt").read_text().splitlines()
    mark = "\u2581"
    llama_decoder = decoders.Sequence([decoders.Replace(mark, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])

    def made(name, tokenizer, **change):
        content = json.loads(tokenizer.to_str())
        for key, value in change.items():
            content["model"][key] = value
        path = build / f"tokenizer-{name}.json"
        path.write_text(json.dumps(content))
        return path, name

    def sentencepiece(normalizer, pre_tokenizer, byte_tokens=256, normalized=False, fuse=True):
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=fuse, unk_token="<unk>"))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(mark), normalizers.Replace(" ", mark)])
        tokenizer.pre_tokenizer = pre_tokenizers.Split(mark, "merged_with_next")  # merges stay inside words while training
        special = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(byte_tokens)]
        tokenizer.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=1200, special_tokens=special, show_progress=False))
        content = json.loads(tokenizer.to_str())
        content["added_tokens"] = [{**t, "normalized": normalized} for t in content["added_tokens"] if t["id"] < 3]
        tokenizer = Tokenizer.from_str(json.dumps(content))
        tokenizer.normalizer, tokenizer.decoder = normalizer, llama_decoder
        content = json.loads(tokenizer.to_str())
        content["pre_tokenizer"] = json.loads(pre_tokenizer.__getstate__()) if pre_tokenizer else None
        tokenizer = Tokenizer.from_str(json.dumps(content))
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
        return tokenizer

    legacy = normalizers.Sequence([normalizers.Prepend(mark), normalizers.Replace(" ", mark)])
    yield made("llama2", sentencepiece(legacy, None))
    yield made("llama2-normalized-specials", sentencepiece(legacy, None, normalized=True))
    yield made("llama2-no-bytes", sentencepiece(legacy, None, byte_tokens=0))
    yield made("llama2-some-bytes", sentencepiece(legacy, None, byte_tokens=200, fuse=False))
    for scheme in ("always", "first", "never"):
        for split in (False, True):
            yield made(f"metaspace-{scheme}-{split}", sentencepiece(None, pre_tokenizers.Metaspace(mark, scheme, split)))
    squeezed = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(" {2,}"), " ")])
    yield made("squeezed", sentencepiece(squeezed, pre_tokenizers.Metaspace(mark, "first", False)))

    def byte_level(pre, alphabet=True, unknown=None):
        tokenizer = Tokenizer(models.BPE(unk_token=unknown))
        tokenizer.pre_tokenizer, tokenizer.decoder = pre, decoders.ByteLevel()
        tokenizer.train_from_iterator(lines, trainers.BpeTrainer(
            vocab_size=1200, special_tokens=["<|endoftext|>", "<|im_start|>"], show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if alphabet else []))
        return tokenizer

    P = pre_tokenizers
    regex, plain = P.ByteLevel(add_prefix_space=False, use_regex=True), P.ByteLevel(add_prefix_space=False, use_regex=False)
    yield made("smollm2", byte_level(P.Sequence([P.Digits(True), regex]), alphabet=False))
    yield made("smollm2-unknown", byte_level(P.Sequence([P.Digits(True), regex]), alphabet=False, unknown="<|endoftext|>"))
    yield made("falcon3", byte_level(P.Sequence([P.Punctuation("contiguous"), regex, P.Digits(False),
                                                 P.Split(Regex("[0-9][0-9][0-9]"), "isolated")])))
    coder = [P.Split(Regex(p), "isolated") for p in ("[\r\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", "[\u4e00-\u9fff]+")]
    yield made("deepseek-coder", byte_level(P.Sequence([*coder, P.Digits(True), plain])))
    for behavior in ("isolated", "removed", "merged_with_previous", "merged_with_next"):
        yield made(f"punctuation-{behavior}", byte_level(P.Sequence([P.Punctuation(behavior), plain])))
    yield made("whitespace", byte_level(P.Sequence([P.Whitespace(), plain])))
    yield made("whitespace-split", byte_level(P.Sequence([P.WhitespaceSplit(), P.CharDelimiterSplit("e"), plain])))

    for name, bytes_too, pre in (("unigram", False, P.Metaspace(mark, "always")), ("unigram-bytes", True, P.Metaspace(mark, "first", False)),
                                 ("unigram-words", False, P.Sequence([P.WhitespaceSplit(), P.Metaspace(mark)]))):
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre, decoders.Metaspace(mark, "always")
        special = ["<unk>", "</s>"] + ([f"<0x{i:02X}>" for i in range(256)] if bytes_too else [])
        tokenizer.train_from_iterator(lines, trainers.UnigramTrainer(vocab_size=900, special_tokens=special, unk_token="<unk>", show_progress=False))
        content = json.loads(tokenizer.to_str())
        content["added_tokens"] = [t for t in content["added_tokens"] if t["id"] < 2]
        yield made(name, Tokenizer.from_str(json.dumps(content)), byte_fallback=bytes_too)


def unpacked(build):
    path = build / "qwen3-tokenizer.json"
    path.write_bytes(lzma.decompress((DATA / "tokenizers" / "qwen3" / "tokenizer.json.xz").read_bytes()))
    return path


def check_texts(build, folder, name, texts, expected):
    got = native(build, folder, texts, [])["ids"]
    bad = [i for i, (a, b) in enumerate(zip(expected, got)) if a != b]
    for i in bad[:5]:
        print(f"{name}: ids differ for {texts[i]!r}\n  expected {expected[i]}\n  found    {got[i]}")
    print(f"{name}: {len(texts)} strings, {sum(map(len, expected))} tokens: {len(bad)} differ")
    return not bad


def sentencepiece_folder(build, kind, legacy):
    """tokenizer.model alone; plain text is what sentencepiece itself makes of it, behind <s>."""
    import sentencepiece

    folder = build / f"tokenizer-sentencepiece-{kind}-{legacy}"
    folder.mkdir(exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        input=str(DATA / "samples" / "calib_text.txt"), model_prefix=str(folder / "tokenizer"), model_type=kind, vocab_size=1000, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, user_defined_symbols=["<|user|>"], minloglevel=2,
        hard_vocab_limit=False, split_digits=True, allow_whitespace_only_pieces=True)
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": legacy}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    rng = random.Random(300)
    # The marks themselves and user-defined symbols are cut by sentencepiece within its pieces, by Hugging Face before.
    texts = [t for t in random_strings(args.strings, ["word"], rng) if "\u2581" not in t and "\0" not in t]
    if not legacy:  # then transformers puts no second mark before a space, sentencepiece does
        texts = [t for t in texts if not t.startswith(" ")]
    return check_texts(build, folder, folder.name, texts, [[1] + pieces.encode(t) for t in texts])


def tiktoken_folder(build, file):
    """The ranks of a trained vocabulary as tiktoken stores them; Hunyuan's own class looks for its special tokens and runs tiktoken."""
    import base64
    import unicodedata

    import tiktoken

    base = tokenizers.Tokenizer.from_file(str(DATA / "toy-qwen3vl" / "tokenizer.json"))
    spec = json.loads(base.to_str())
    bytes_of = {c: b for b, c in alphabet().items()}
    words = [bytes(bytes_of[c] for c in t) for t, _ in sorted(spec["model"]["vocab"].items(), key=lambda e: e[1])]
    single = [bytes([b]) for b in range(256)]
    ranks = {w: i for i, w in enumerate(single + [w for w in words if len(w) > 1])}
    folder = build / ("tokenizer-" + file)
    folder.mkdir(exist_ok=True)
    (folder / file).write_bytes(b"".join(base64.b64encode(w) + b" %d\n" % r for w, r in ranks.items()))
    if file == "hy.tiktoken":
        names = ["<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>"] + [f"<|extra_{i}|>" for i in range(205)]
    else:
        names = ["<|im_start|>", "<|im_end|>"]
    special = {name: len(ranks) + i for i, name in enumerate(names)}
    added = {str(i): {"content": name, "special": True} for name, i in special.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps({} if file == "hy.tiktoken" else {"added_tokens_decoder": added}))
    pattern = spec["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    reference = tiktoken.Encoding("test", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    rng = random.Random(301)
    # Code points that tiktoken's and Python's Unicode know otherwise than the tokenizers library's are no subject here.
    texts = [t for t in random_strings(args.strings, names, rng)
             if all(ord(c) < 0x10000 and c != "\u1abf" and unicodedata.category(c) != "Cn" for c in t)]
    return check_texts(build, folder, folder.name, texts, [reference.encode(unicodedata.normalize("NFC", t), allowed_special="all") for t in texts])


def alphabet():
    """The characters that stand for bytes in byte-level vocabularies."""
    plain = [b for b in range(256) if 0x21 <= b <= 0x7E or 0xA1 <= b <= 0xAC or b >= 0xAE]
    others = (b for b in range(256) if b not in plain)
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


def vocabulary_folder(build, old):
    """vocab.json and merges.txt, with the added tokens in tokenizer_config.json or, as before, in added_tokens.json."""
    from transformers import AutoTokenizer

    whole = json.loads((DATA / "toy-qwen3vl" / "tokenizer.json").read_text())
    folder = build / f"tokenizer-vocabulary-{old}"
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(" ".join(m) + "\n" if isinstance(m, list) else m + "\n" for m in whole["model"]["merges"]))
    config = json.loads((DATA / "toy-qwen3vl" / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "Qwen2Tokenizer"
    config.pop("added_tokens_decoder", None)
    added = {t["content"]: t["id"] for t in whole["added_tokens"]}
    if old:
        (folder / "added_tokens.json").write_text(json.dumps(added))
    else:
        config["added_tokens_decoder"] = {str(t.pop("id")): t for t in whole["added_tokens"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    rng = random.Random(302)
    texts = random_strings(args.strings, list(added), rng)
    reference = AutoTokenizer.from_pretrained(folder)
    return check_texts(build, folder, folder.name, texts, [reference.encode(t, add_special_tokens=False) for t in texts])


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
whole, args.strings = args.strings, max(1, args.strings // 5)
for seed, (path, name) in enumerate(variants(args.build)):
    words = ["".join("abc" + chr(c) + "<l>" + chr(c) + "<r>" + chr(c) for c in CODE_POINTS[i : i + 256]) for i in range(0, 0x32000, 256)]
    good &= check(args.build, path, name, words if name == "added" else [], 100 + seed)
args.strings = whole
for seed, (path, name) in enumerate(families(args.build)):
    good &= check(args.build, path, name, everything[::3] if name in ("llama2", "falcon3", "smollm2", "whitespace", "unigram") else [], 200 + seed)
for kind in ("bpe", "unigram"):
    for legacy in (True, False):
        good &= sentencepiece_folder(args.build, kind, legacy)
for file in ("hy.tiktoken", "qwen.tiktoken"):
    good &= tiktoken_folder(args.build, file)
for old in (False, True):
    good &= vocabulary_folder(args.build, old)
sys.exit(0 if good else 1)
