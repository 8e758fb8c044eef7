"""Every file in configs/ plans its job on a model of its family: on a published model's configuration, laid out as a sparse file, or
on a trained toy. Quantized layers must be there, and nothing may be left in float that the file does not say."""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from kit import DATA, ROOT, build_folder, run, unpacked

CONFIGS = ROOT / "configs"
SCHEMES = {"int4_awq", "int4_gptq", "fp8_static", "fp8_dynamic", "fp8_block", "int8_dynamic"}
PUBLISHED = {"qwen3_vl": "Qwen3-VL-8B-Instruct", "qwen3_vl_moe": "Qwen3-VL-30B-A3B-Instruct", "qwen": "Qwen2.5-7B-Instruct"}
TOYS = {"qwen2_5_vl": "toy-qwen25vl", "hunyuan": "toy-hunyuan-dense", "hunyuan_moe": "toy-hunyuan-moe"}


def model_of(build, family, work):
    """A checkpoint of the family; None where the repository has none."""
    if family in TOYS:
        return unpacked(build, TOYS[family])
    if family not in PUBLISHED:
        return None
    folder = work / PUBLISHED[family]
    run(sys.executable, ROOT / "tests/tools/sparse_checkpoint.py", DATA / "configs" / PUBLISHED[family], folder)
    return folder


def check(build, file, model):
    done = subprocess.run([build / "bin/slim", "plan", "--config", file, "--model", model, "--json"], capture_output=True, text=True)
    plan = json.loads(done.stdout) if done.returncode == 0 else {}
    good = bool(plan) and plan["output_bytes"] < 0.9 * plan["input_bytes"]
    sizes = f"{plan['input_bytes'] / 1e6:.1f} -> {plan['output_bytes'] / 1e6:.1f} MB" if plan else done.stderr.strip()
    print(f"{'ok    ' if good else 'FAILED'} {file.relative_to(CONFIGS)}: {sizes}", flush=True)
    return good


def main():
    build = build_folder()
    good = True
    with tempfile.TemporaryDirectory() as name:
        for folder in sorted(path for path in CONFIGS.iterdir() if path.is_dir()):
            schemes = {path.stem for path in folder.glob("*.toml")}
            good &= SCHEMES <= schemes
            if not SCHEMES <= schemes:
                print(f"FAILED {folder.name}: no {', '.join(sorted(SCHEMES - schemes))}")
            model = model_of(build, folder.name, Path(name))
            if model:
                good &= all([check(build, file, model) for file in sorted(folder.glob("*.toml"))])
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
