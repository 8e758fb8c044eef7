#!/usr/bin/env python3
"""The checks of check.sh, after the build. Each ends by itself within its time; what it found is in OUT/check.json, also of those that failed.

    python3 tests/device/check.py --build BUILD --backend cuda --out OUT [--block 512x2048] [--only NAME ...]"""
import argparse
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import time

TESTS = pathlib.Path(__file__).resolve().parents[1]
DATA, SAMPLES = TESTS / "data", TESTS / "data/samples"
# Shapes of one block of Qwen3-VL-8B's language model; no tower is needed to time it.
BLOCK = dict(architectures=["Qwen3ForCausalLM"], model_type="qwen3", num_hidden_layers=2, hidden_size=4096, intermediate_size=12288,
             num_attention_heads=32, num_key_value_heads=8, head_dim=128, vocab_size=2048, rms_norm_eps=1e-6, rope_theta=5e6, hidden_act="silu",
             max_position_embeddings=4096, tie_word_embeddings=False, attention_bias=False, torch_dtype="bfloat16")
KL_NOISE = 0.35  # of ln(KL): one figure moves by about a tenth with any change of rounding (docs/accuracy.md)


class Checks:
    def __init__(self, arguments):
        self.arguments, self.results, self.failed = arguments, {}, []

    def slim(self, *words, seconds=300):
        command = [self.arguments.build / "bin/slim", *words, "--json"]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=seconds)
        if done.returncode:
            raise RuntimeError(f"slim {words[0]} ...: exit code {done.returncode}: {done.stderr[-600:]}")
        return json.loads(done.stdout)

    def run(self, name, check):
        if self.arguments.only and name not in self.arguments.only:
            return
        begin = time.time()
        try:
            self.results[name] = dict(ok=True, **check(self))
        except Exception as error:  # the others still run
            self.results[name] = dict(ok=False, error=f"{type(error).__name__}: {error}")
            self.failed.append(name)
        self.results[name]["seconds"] = round(time.time() - begin, 1)
        print(f"{name}: {'ok' if self.results[name]['ok'] else self.results[name]['error']}, {self.results[name]['seconds']} s", flush=True)
        (self.arguments.out / "check.json").write_text(json.dumps(self.results, indent=1))


def machine(checks):
    return dict(cpus=os.cpu_count(), doctor=checks.slim("doctor"))


def kernels(checks):
    """The table of operators against the reference, on the device."""
    library = checks.arguments.build / f"lib/slim/plugins/libslim_backend_{checks.arguments.backend}.so"
    found = checks.slim("plugins", "validate", library)
    test = checks.arguments.build / "bin/test_cuda_backend"
    if checks.arguments.backend == "cuda":
        done = subprocess.run([str(test)], capture_output=True, text=True, timeout=200, cwd=TESTS.parent, env={**os.environ,
                              "SLIM_BUILD_DIR": str(checks.arguments.build.resolve()), "SLIM_SOURCE_DIR": str(TESTS.parent)})
        if done.returncode:
            raise RuntimeError(done.stdout[-2000:])
    return dict(validate=found)


def toys(checks):
    """Each toy, by AWQ and GPTQ: KL on the device as on the CPU, within the noise of one figure."""
    table = {}
    for toy in ("toy-qwen3vl", "toy-hunyuan-moe"):
        model = checks.arguments.out / toy
        if not model.exists():
            if (DATA / toy / "model.safetensors.packed").exists():
                subprocess.run([sys.executable, TESTS / "tools/packed_model.py", "unpack", DATA / toy, model], check=True, capture_output=True)
            else:
                shutil.copytree(DATA / toy, model)
        calib = SAMPLES / ("calib.jsonl" if "vl" in toy else "calib_textqa.jsonl")
        for method in ("gptq", "awq"):
            row = table[f"{toy} {method}"] = {}
            for backend in ("cpu", checks.arguments.backend):
                out = checks.arguments.out / "result"
                shutil.rmtree(out, ignore_errors=True)
                checks.slim("--plugin", method, "--model", model, "--calib", calib, "--num-samples", 64, "--scheme", "w4a16", "--backend", backend,
                            "--output", out, "--quiet")
                row[backend] = checks.slim("eval", out, "--reference", model, "--data", SAMPLES / "eval_text.txt", "--backend", backend,
                                           "--quiet")["text_kl"]
            first, second = row["cpu"], row[checks.arguments.backend]
            if abs(math.log(second / first)) > KL_NOISE:
                raise RuntimeError(f"{toy} {method}: KL {first:.5f} on the CPU, {second:.5f} on the device")
    return dict(kl=table)


def block(checks):
    """GPTQ and AWQ of one block of Qwen3-VL-8B's shapes: phases, peak of device memory, and the share of its best bf16 product."""
    folder = checks.arguments.out / "block"
    if not folder.exists():
        config = checks.arguments.out / "block.json"
        config.write_text(json.dumps(BLOCK))
        subprocess.run([sys.executable, TESTS / "tools/make_checkpoint.py", folder, "--like", DATA / "toy-qwen25vl", "--shapes", config],
                       check=True, capture_output=True)
    samples, length = checks.arguments.block.split("x")
    texts = checks.arguments.out / "texts.txt"
    texts.write_text("".join(f"{number} " * int(length) + "\n" for number in range(int(samples))))
    job = ["--model", folder, "--calib", texts, "--num-samples", samples, "--max-seq-length", length, "--scheme", "w4a16",
           "--backend", checks.arguments.backend, "--stop-after-blocks", 1]
    results = {}
    for method in ("gptq", "awq"):
        out = checks.arguments.out / "result"
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(f"{out}.partial", ignore_errors=True)
        plan = checks.slim("plan", "--plugin", method, *job, "--output", out)
        begin = time.time()
        report = checks.slim("--plugin", method, *job, "--output", out, "--quiet")
        operations = sum(phase["operations"] for phase in plan["time"]["phases"].values()) / BLOCK["num_hidden_layers"]
        results[method] = dict(seconds=time.time() - begin, operations_per_second=operations / (time.time() - begin), report=report,
                               device=plan.get("device"))
        shutil.rmtree(f"{out}.partial", ignore_errors=True)
    return dict(methods=results, best_bf16=best_product(checks.arguments.backend))


def best_product(backend):
    """Operations per second of a large bf16 product, by the LibTorch that python3 imports; null without one."""
    code = ("import torch,time\nd='cuda' if %r=='cuda' else 'cpu'\nn=8192 if d=='cuda' else 1024\na=torch.randn(n,n,device=d).bfloat16()\n"
            "s=torch.cuda.synchronize if d=='cuda' else (lambda: None)\n(a@a);s();b=time.time()\nfor _ in range(5): a@a\ns()\n"
            "print(5*2*n**3/(time.time()-b))" % backend)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    return float(done.stdout) if done.returncode == 0 else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--block", default="512x2048")
    parser.add_argument("--only", nargs="+")
    checks = Checks(parser.parse_args())
    for check in (machine, kernels, toys, block):
        checks.run(check.__name__, check)
    sys.exit(1 if checks.failed else 0)


main()
