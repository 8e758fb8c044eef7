#!/usr/bin/env python3
"""slim beside llm-compressor 0.14 at the width of real layers: in turns, in one run, on the same samples and threads.

    python3 tests/bench/bench_peer.py --build BUILD --peer VENV/bin/python [--shapes 2048x8192 4096x14336 moe] [--samples 16x256 64x512]
                                      [--methods gptq awq awq,gptq] [--threads 2] [--blocks 1] [--work FOLDER] [--json FILE] [--without-peer]
                                      [--peer-limit 10]

W4A16 in groups of 128. For each job: wall and processor seconds and peak memory of both programs, as whole processes, and their ratio;
and for slim what each phase reaches of the best fp32 matrix product measured just before and after it, by the operations that `slim plan`
counts. VENV: python3 -m venv VENV && VENV/bin/pip install llmcompressor==0.14.0.1 torch==2.11.0 torchvision pillow; it also makes the
checkpoints. With --peer-limit the other program is stopped when it has taken so many times slim's wall time; its ratios are then at least those
that are printed. awq,gptq has no counterpart: it is compared with slim's awq."""
import argparse
import json
import os
import pathlib
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time

BENCH = pathlib.Path(__file__).resolve().parent
DATA = BENCH.parent / "data"
TOKENIZER = DATA / "toy-qwen25vl"


def run(command, threads, log, limit=None):
    """Wall and processor seconds and peak memory of a process, and what it printed; stopped after `limit` seconds."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    with open(log, "w") as errors:
        process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        stop = threading.Timer(limit, process.kill) if limit else None
        if stop:
            stop.start()
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    stopped = bool(limit) and wall >= limit
    if stop:
        stop.cancel()
    if status and not stopped:
        sys.exit(f"{' '.join(map(str, command))}: exit status {status}\n{pathlib.Path(log).read_text()[-3000:]}")
    return dict(wall=wall, processor=usage.ru_utime + usage.ru_stime, peak_bytes=usage.ru_maxrss * 1024, stopped=stopped), printed


def write_texts(path, samples, length, seed=0):
    """Lines of at least `length` tokens: words of the calibration text in random order."""
    draw = random.Random(seed)
    words = (DATA / "samples/calib_text.txt").read_text().split()
    path.write_text("".join(" ".join(draw.choice(words) for _ in range(length)) + "\n" for _ in range(samples)))


BEST_PRODUCT = """
import sys, time, torch
torch.set_num_threads(int(sys.argv[1]))
a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
def seconds():
    start = time.perf_counter()
    a @ b
    return time.perf_counter() - start
print(2 * 2048**3 / min(seconds() for _ in range(12)))
"""


def best_product(arguments, log):
    """Operations per second of the best of some products of 2048 x 2048 matrices in fp32."""
    return float(run([arguments.peer, "-c", BEST_PRODUCT, arguments.threads], arguments.threads, log)[1])


def measure_slim(arguments, model, texts, length, samples, method, out, log):
    shutil.rmtree(out, ignore_errors=True)
    job = ["--plugin", method, "--model", model, "--calib", texts, "--max-seq-length", length, "--num-samples", samples, "--scheme", "w4a16",
           "--threads", arguments.threads, "--output", out, "--json"]
    slim = arguments.build / "bin/slim"
    planned = json.loads(run([slim, "plan", *job], arguments.threads, log)[1])
    best = best_product(arguments, log)
    used, printed = run([slim, *job, "--quiet"], arguments.threads, log)
    best = max(best, best_product(arguments, log))
    report = json.loads(printed)
    time_plan = planned["time"]
    phases = {}
    for name, seconds in report["phases"].items():
        operations = time_plan["phases"].get(name, {}).get("operations", 0)
        phases[name] = dict(seconds=seconds, operations=operations, of_best=operations / seconds / best if seconds else 0)
    operations = sum(phase["operations"] for phase in phases.values())
    used.update(phases=phases, planned_seconds=time_plan["seconds"], planned_bytes=planned["peak_memory_bytes"],
                flops_per_second=best, operations=operations, of_best=operations / report["seconds"] / best,
                tokens=report["calibration"]["text_tokens"])
    return used


def ratio_text(ours, theirs, key):
    return f"{theirs[key] / ours[key]:8.2f}" if theirs else "       -"


def print_job(name, result):
    slim, peer = result["slim"], result.get("peer")
    print(f"\n{name}: {slim['tokens']} tokens, {slim['operations'] / 1e12:.2f} Tflop, best product {slim['flops_per_second'] / 1e9:.0f} Gflop/s")
    print(f"{'':18}{'slim':>10}{'peer':>10}{'ratio':>8}")
    for key, title, scale in (("wall", "wall, s", 1), ("processor", "processor, s", 1), ("peak_bytes", "peak memory, MB", 1e-6)):
        theirs = f"{peer[key] * scale:10.1f}" if peer else f"{'-':>10}"
        print(f"{title:18}{slim[key] * scale:10.1f}{theirs}{ratio_text(slim, peer, key)}")
    if peer and peer["stopped"]:
        print("the peer was stopped unfinished: its figures and the ratios are at least these")
    print(f"{'planned':18}{slim['planned_seconds']:8.1f} s{slim['planned_bytes'] * 1e-6:10.0f} MB")
    print(f"{'whole run':18}{slim['of_best']:10.2f} of the best product")
    for phase, value in sorted(slim["phases"].items(), key=lambda item: -item[1]["seconds"]):
        reached = f"{value['of_best']:8.2f} of the best product" if value["operations"] else ""
        print(f"  {phase:16}{value['seconds']:8.1f} s{reached}")
    sys.stdout.flush()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--peer", type=pathlib.Path, required=True)
    parser.add_argument("--shapes", nargs="+", default=["2048x8192", "4096x14336", "moe"])
    parser.add_argument("--samples", nargs="+", default=["16x256", "64x512"])
    parser.add_argument("--methods", nargs="+", default=["gptq", "awq", "awq,gptq"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--work", type=pathlib.Path)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--peer-limit", type=float)
    parser.add_argument("--without-peer", action="store_true")
    arguments = parser.parse_args()
    scratch = tempfile.TemporaryDirectory()
    work = arguments.work or pathlib.Path(scratch.name)
    work.mkdir(parents=True, exist_ok=True)
    results = {"machine": dict(processor=platform.processor() or platform.machine(), cpus=os.cpu_count(), threads=arguments.threads), "jobs": {}}
    for shape in arguments.shapes:
        model = work / f"model-{shape}-{arguments.blocks}"
        if not (model / "config.json").exists():
            run([arguments.peer, BENCH / "wide_checkpoint.py", model, "--shape", shape, "--blocks", arguments.blocks, "--tokenizer", TOKENIZER],
                arguments.threads, work / "log")
        for size in arguments.samples:
            samples, length = (int(number) for number in size.split("x"))
            texts = work / f"texts-{size}.txt"
            write_texts(texts, samples, length)
            for method in arguments.methods:
                name = f"{shape} {size} {method}"
                job = results["jobs"][name] = {}
                job["slim"] = measure_slim(arguments, model, texts, length, samples, method, work / "out", work / "log")
                if not arguments.without_peer and method in ("awq", "gptq"):
                    job["peer"] = run([arguments.peer, BENCH / "peer_wide.py", model, texts, length, work / "out-peer", method, arguments.threads],
                                      arguments.threads, work / "log", arguments.peer_limit and arguments.peer_limit * job["slim"]["wall"])[0]
                    shutil.rmtree(work / "out-peer", ignore_errors=True)
                print_job(name, job)
                if arguments.json:
                    arguments.json.write_text(json.dumps(results, indent=1))
            awq, both = (results["jobs"].get(f"{shape} {size} {method}") for method in ("awq", "awq,gptq"))
            if awq and both:
                print(f"\nawq,gptq takes {both['slim']['wall'] / awq['slim']['wall']:.2f} times the wall time of awq")


main()
