#!/usr/bin/env python3
"""Which client loads which scheme in which format: makes the table of docs/formats.md by trying.

    matrix.py --build BUILD [--write] [--only TEXT] [--client NAME] [--results FILE]

For every row it quantizes tests/data/toy-qwen3vl, scores text with slim's own dequantized forward pass, and with each client that is
there; "yes" where the most likely tokens agree. Clients: transformers of this Python; vLLM of SLIM_VLLM_PYTHON (.venv-vllm); GPTQModel
and transformers with it of SLIM_GPTQMODEL_PYTHON (.venv-gptqmodel). --write puts the table, with what earlier runs left
in --results (BUILD/client_matrix.json), into docs/formats.md.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests/data/toy-qwen3vl"
SAMPLES = ROOT / "tests/data/samples"
DOCUMENTS, TOKENS = 6, 80
# Kernels of different engines round differently in bf16, so two nearly equal candidates may change places; foreign weights agree
# on a few tokens in a hundred.
LEAST_EQUAL = 0.95
CLIENTS = ("transformers", "vllm", "gptqmodel")
BEGIN, END = "<!-- made by tests/clients/matrix.py -->", "<!-- end -->"


@dataclass
class Row:
    format: str
    scheme: str
    note: str = ""  # what the table says beside the scheme
    plugin: str = "rtn"
    flags: list = field(default_factory=list)
    config: str = ""  # TOML, beyond the flags

    @property
    def label(self):
        return f"{self.format} {self.scheme} {self.note}".strip()


def rule(match, scheme):
    return f'[[rule]]\nmatch = "re:{match}"\nscheme = "{scheme}"\n'


def compressed_tensors(scheme, *arguments, **options):
    return Row("compressed-tensors", scheme, *arguments, **options)


WHOLE_ROWS = {"note": "a scale per row", "flags": ["--group-size", "-1"]}
ROWS = [
    *(compressed_tensors(scheme) for scheme in ("w4a16", "w4a16_asym", "w8a16", "w8a16_asym", "w3a16", "w3a16_asym", "w2a16", "w2a16_asym")),
    compressed_tensors("w4a16", **WHOLE_ROWS), compressed_tensors("w4a16_asym", **WHOLE_ROWS), compressed_tensors("w8a16", **WHOLE_ROWS),
    *(compressed_tensors(scheme) for scheme in ("w8a8", "w8a8_static", "fp8_dynamic", "fp8_static", "fp8_block", "fp8_a16")),
    compressed_tensors("w4a16", "down_proj in fp8_dynamic", config=rule(".*down_proj", "fp8_dynamic")),
    compressed_tensors("w4a16", "attention in float", flags=["--ignore", "re:.*self_attn.*"]),
    compressed_tensors("w4a16", "FP8 cache", flags=["--kv-cache", "fp8"]),
    compressed_tensors("2:4", plugin="sparse"), compressed_tensors("2:4+w4a16", plugin="sparse"),
    Row("awq", "w4a16_asym"), Row("awq", "w4a16"), Row("awq", "w4a16_asym", "groups of 32", flags=["--group-size", "32"]),
    Row("awq", "w4a16_asym", **WHOLE_ROWS), Row("awq", "w4a16_asym", "attention in float", flags=["--ignore", "re:.*self_attn.*"]),
    *(Row("gptq", scheme) for scheme in ("w4a16", "w8a16", "w3a16", "w2a16")), Row("gptq", "w4a16", **WHOLE_ROWS),
    Row("gptq", "w4a16", "down_proj in w8a16", config=rule(".*down_proj", "w8a16")),
    Row("gptq", "w4a16", "attention in float", flags=["--ignore", "re:.*self_attn.*"]),
    Row("gptq", "w4a16", "scattered groups", plugin="gptq", flags=["--set", "compression.gptq.desc_act=true", "--set", "compression.gptq.static_groups=false"]),
    *(Row("gptq_v2", scheme) for scheme in ("w4a16", "w4a16_asym", "w8a16_asym", "w3a16_asym", "w2a16_asym")),
]


def serves(client, row):
    """GPTQModel does not read compressed-tensors."""
    return client != "gptqmodel" or row.format != "compressed-tensors"


def python_of(client, row):
    """The Python that has the client, or None."""
    gptqmodel = Path(os.environ.get("SLIM_GPTQMODEL_PYTHON", ROOT / ".venv-gptqmodel/bin/python"))
    vllm = Path(os.environ.get("SLIM_VLLM_PYTHON", ROOT / ".venv-vllm/bin/python"))
    own = row.format == "compressed-tensors"
    if not serves(client, row):
        return None
    python = {"transformers": Path(sys.executable) if own else gptqmodel, "vllm": vllm, "gptqmodel": gptqmodel}[client]
    return python if python.exists() else None


def json_of(command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}")
    return json.loads(done.stdout)


def quantize(build, row, folder):
    config = f"{folder}.toml"
    Path(config).write_text(row.config)
    json_of([build / "bin/slim", "--config", config, "--plugin", row.plugin, "--model", MODEL, "--calib", SAMPLES / "calib.jsonl", "--num-samples", 16,
             "--scheme", row.scheme, "--format", row.format, "--output", folder, *row.flags, "--json", "--quiet"])


def sequences():
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    documents = (SAMPLES / "eval_text.txt").read_text().splitlines()
    return [tokenizer.encode(text).ids[:TOKENS] for text in documents[:DOCUMENTS]]


def own_scores(build, folder, ids):
    with tempfile.TemporaryDirectory() as work:
        os.makedirs(f"{work}/samples")
        save_file({f"{i}.input_ids": torch.tensor(tokens) for i, tokens in enumerate(ids)}, f"{work}/samples/model.safetensors")
        Path(work, "samples/config.json").write_text("{}")
        subprocess.run([build / "bin/slim_logits", folder, f"{work}/samples", f"{work}/logits"], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        logits = load_file(f"{work}/logits/model.safetensors")
    scores = [logits[f"{i}.logits"][:-1].log_softmax(-1) for i in range(len(ids))]
    return {"best": [s.argmax(-1).tolist() for s in scores],
            "logprob": [s.gather(1, torch.tensor(tokens)[1:, None])[:, 0].tolist() for s, tokens in zip(scores, ids, strict=True)]}


def flat(lists):
    return [value for values in lists for value in values]


@dataclass
class Verdict:
    loads: bool
    equal: float = 0.0  # share of positions whose most likely token is slim's
    difference: float = 0.0  # mean |difference| of the text's log-probabilities
    reason: str = ""

    @property
    def good(self):
        return self.loads and self.equal >= LEAST_EQUAL

    @property
    def text(self):
        return f"yes, {self.equal:.1%}" if self.good else "no"


def compare(theirs, ours):
    if "error" in theirs:
        return Verdict(False, reason=theirs["error"])
    equal = [a == b for a, b in zip(flat(theirs["best"]), flat(ours["best"]), strict=True)]
    apart = [abs(a - b) for a, b in zip(flat(theirs["logprob"]), flat(ours["logprob"]), strict=True)]
    verdict = Verdict(True, sum(equal) / len(equal), sum(apart) / len(apart))
    if not verdict.good:
        verdict.reason = f"loads, but only {verdict.equal:.1%} of the most likely tokens are those of slim's forward pass"
    return verdict


def scores_of(python, client, folders, ids_file):
    """Client's scores, a checkpoint at a time, as they come."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([python, ROOT / "tests/clients/load_checkpoints.py", client, ids_file, *folders], stdout=subprocess.PIPE,
                                   stderr=log, text=True)
        any_line = False
        for line in process.stdout:
            any_line = True
            yield json.loads(line)
        process.wait()
        if not any_line:
            log.seek(0)
            raise RuntimeError(f"{client} did not start: {log.read()[-2000:]}")


def try_rows(build, rows, clients=CLIENTS, tell=lambda row, client, verdict: None):
    """{(row index, client): Verdict}, and the rows that slim itself could not make: {row index: reason}. `tell` hears of each."""
    verdicts, failed, ids = {}, {}, sequences()
    with tempfile.TemporaryDirectory() as work:
        ids_file = Path(work, "ids.json")
        ids_file.write_text(json.dumps(ids))
        ours, jobs = {}, {}
        for index, row in enumerate(rows):
            wanted = [(python, client) for client in clients if (python := python_of(client, row))]
            if not wanted:
                continue
            folder = f"{work}/{index}"
            try:
                quantize(build, row, folder)
                ours[index] = own_scores(build, folder, ids)
            except (RuntimeError, subprocess.CalledProcessError) as error:
                failed[index] = str(error)
                print(f"{row.label}: {error}", flush=True)
                continue
            for job in wanted:
                jobs.setdefault(job, []).append(index)
        for (python, client), indices in jobs.items():
            for scores in scores_of(python, client, [f"{work}/{i}" for i in indices], ids_file):
                i = int(Path(scores["checkpoint"]).name)
                verdict = verdicts[i, client] = compare(scores, ours[i])
                print(f"{client:12} {rows[i].label:50} {verdict.text} {verdict.difference:.4f} {verdict.reason}", flush=True)
                tell(rows[i], client, verdict)
    return verdicts, failed


def table(results):
    """results: {row label: {client: Verdict}}"""
    titles = {"transformers": "transformers", "vllm": "vLLM (CPU)", "gptqmodel": "GPTQModel"}
    lines = ["| format | scheme | " + " | ".join(titles[client] for client in CLIENTS) + " |", "|" + "---|" * (2 + len(CLIENTS))]
    notes = []
    for row in ROWS:
        verdicts = results.get(row.label)
        if not verdicts:
            continue
        cells = []
        for client in CLIENTS:
            verdict = verdicts.get(client)
            text = verdict.text if verdict else "not tried" if serves(client, row) else "-"
            if verdict and verdict.reason:
                reason = textwrap.shorten(verdict.reason.replace("`", "'"), 160, placeholder=" ...")
                if reason not in notes:
                    notes.append(reason)
                text += f" ({notes.index(reason) + 1})"
            cells.append(text)
        lines.append(f"| {row.format} | {row.scheme}{', ' + row.note if row.note else ''} | " + " | ".join(cells) + " |")
    lines.append("")
    lines += [f"{number}. `{reason}`" for number, reason in enumerate(notes, 1)]
    return "\n".join(lines)


class Results:
    """What is known so far, kept in a file between runs: a run may try some rows, or one client."""

    def __init__(self, path):
        self.path = path
        known = json.loads(path.read_text()) if path.exists() else {}
        self.rows = {label: {client: Verdict(**fields) for client, fields in row.items()} for label, row in known.items()}

    def add(self, row, client, verdict):
        self.rows.setdefault(row.label, {})[client] = verdict
        text = {label: {client: vars(verdict) for client, verdict in clients.items()} for label, clients in self.rows.items()}
        self.path.write_text(json.dumps(text, indent=1))


def write(text):
    path = ROOT / "docs/formats.md"
    document = path.read_text()
    begin, end = document.index(BEGIN) + len(BEGIN), document.index(END)
    path.write_text(document[:begin] + "\n" + text + "\n" + document[end:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--client", choices=CLIENTS, action="append")
    parser.add_argument("--results", type=Path)
    arguments = parser.parse_args()
    results = Results(arguments.results or arguments.build / "client_matrix.json")
    try_rows(arguments.build.resolve(), [row for row in ROWS if arguments.only in row.label], arguments.client or CLIENTS, results.add)
    text = table(results.rows)
    print(text)
    if arguments.write:
        write(text)


if __name__ == "__main__":
    main()
