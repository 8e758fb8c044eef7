#!/usr/bin/env python3
"""The safetensors package reads what slim's writer writes, and the generators of checkpoints in tests/tools lay
out exactly the tensors of the models in tests/data."""
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile

import torch
from safetensors import safe_open

from kit import ROOT, build_folder, run, unpacked


def headers(folder):
    tensors = {}
    for path in folder.glob("*.safetensors"):
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        header.pop("__metadata__")
        tensors |= {name: (entry["dtype"], entry["shape"]) for name, entry in header.items()}
    return tensors


def check_writer(build, scratch):
    out = scratch / "written"
    subprocess.run([build / "bin/test_writer", "--test-case=*external check*"], check=True, cwd=ROOT,
                   stdout=subprocess.DEVNULL, env=os.environ | {"SLIM_TEST_CHECKPOINT": str(out)})
    expected = {
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "byte": torch.tensor([7], dtype=torch.uint8),
        "matrix": torch.arange(12, dtype=torch.float32).view(3, 4).to(torch.bfloat16),
        "ids": torch.arange(5),
        "none": torch.empty(0, 3, dtype=torch.float16),
        "fp8": torch.tensor([1.0, -2.0, 448.0]).to(torch.float8_e4m3fn),
    }
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(expected)
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in expected.values())
    for name, shard in index["weight_map"].items():
        with safe_open(out / shard, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
            value = file.get_tensor(name)
        assert value.dtype == expected[name].dtype and value.shape == expected[name].shape, name
        assert torch.equal(value.float(), expected[name].float()), name
    print(f"writer: {len(expected)} tensors in {len(set(index['weight_map'].values()))} shards equal")


def run_tool(name, *arguments):
    run(sys.executable, ROOT / "tests/tools" / name, *arguments)


def check_layouts(scratch):
    models = sorted(path.parent for path in (ROOT / "tests/data").glob("*/config.json"))
    assert models
    for model in models:
        model = unpacked(scratch, model.name)
        run_tool("sparse_checkpoint.py", model, scratch / model.name)
        assert headers(scratch / model.name) == headers(model), model.name
        print(f"sparse layout: {model.name}: {len(headers(model))} tensors equal")


def check_generated(scratch):
    like = ROOT / "tests/data/toy-qwen3vl"
    arguments = ["--like", like, "--blocks", 3, "--bytes", "12MB", "--shard", "4MB"]
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        run_tool("make_checkpoint.py", scratch / name, *arguments, "--seed", seed)
    files = {}
    for name in ("one", "same", "other"):
        files[name] = {path.name: path.read_bytes() for path in (scratch / name).glob("*.safetensors")}
    assert files["one"] == files["same"] and files["one"] != files["other"]
    assert sum(map(len, files["one"].values())) < 12_100_000 and len(files["one"]) > 1
    with safe_open(scratch / "one" / sorted(files["one"])[-1], framework="pt") as file:
        values = {name: file.get_tensor(name).float() for name in file.keys()}
    for name, value in values.items():
        spread = value.std().item() if value.numel() > 1000 else 0.02
        assert torch.isfinite(value).all() and ("norm" in name or 0.018 < spread < 0.022), name
    assert any("norm" in name and (value == 1).all() for name, value in values.items())
    print(f"generated checkpoint: {len(files['one'])} shards, deterministic")


def main():
    build = build_folder()
    with tempfile.TemporaryDirectory() as scratch:
        check_layouts(pathlib.Path(scratch))
        check_generated(pathlib.Path(scratch))
        check_writer(build, pathlib.Path(scratch))


if __name__ == "__main__":
    main()
