"""Who may know what: scans #include lines, linked libraries and exported symbols.

    python tests/unit/layering_test.py --build BUILD_DIR

core -> LibTorch, std and its private libraries; plugins, model_adapters, backends -> core, never each other.
"""
import argparse
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
SUFFIXES = {".h", ".hpp", ".c", ".cpp", ".cu", ".cuh"}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)

TORCH = ("ATen/", "c10/", "torch/headeronly/", "torch/library.h", "torch/csrc/stable/c/shim.h")
# What headers of slim may include of LibTorch: with its operators every file that includes them would compile for seconds more.
LIGHT_TORCH = ("ATen/core/", "c10/", "torch/headeronly/version.h")
SYSTEM = ("sys/", "linux/", "netinet/", "arpa/", "bits/")
# Headers without a folder that are not the system's.
NAMED_LIBRARIES = {"jpeglib.h", "png.h", "pcre2.h", "utf8proc.h", "zlib.h", "simdjson.h"}
VENDOR = re.compile(r"^(cu[a-zA-Z_0-9]*\.h|nccl\.h|acl/|hccl/|mma\.h|cooperative_groups|cub/|thrust/|cutlass/)")
GENERATED = {"slim/interface.hpp"}  # in the build folder
PRECOMPILED = "core/src/pch.hpp"
WHOLE_TORCH = re.compile(r"^torch/(torch|all|extension|script|python|nn|types)\b")

# Area -> folders besides the file's own component in which quoted includes may lie, and foreign libraries it may name.
PRIVATE = {"core/include": (), "sdk/include": (), "sdk/templates": (), "sdk/examples": (), "core/src/plugin": ("nlohmann/", "boost/", "elf.h"), "core/src/data": ("nlohmann/", "boost/iostreams"), "core": ("nlohmann/", "toml++/"), "core/src/config": ("nlohmann/", "toml++/", "yaml-cpp/"),
           "core/components/parquet": ("nlohmann/", "arrow/", "parquet/"),
           "plugins": ("nlohmann/",), "model_adapters/common": ("nlohmann/", "webp/", *NAMED_LIBRARIES),
           "model_adapters": ("nlohmann/",), "backends": ("nlohmann/", "immintrin.h", "omp.h"),
           "sdk": ("nlohmann/", "boost/program_options")}


def area_of(path):
    return max((area for area in PRIVATE if path.startswith(area + "/")), key=len, default=None)


def quoted_folders(path):
    """Folders in which a quoted include of this file may be found."""
    parts = path.split("/")
    folders = [str(pathlib.PurePosixPath(path).parent), "core/include"]
    if parts[0] == "sdk":
        folders += ["sdk/include", "sdk"]
    if parts[0] in ("core", "sdk"):
        public = path.startswith(("core/include/", "sdk/include/", "sdk/templates/", "sdk/examples/"))
        return folders if public else [*folders, "core/src"]
    folders.append("/".join(parts[:2]))  # the component
    if parts[0] in ("model_adapters", "plugins", "backends"):
        folders.append(parts[0])  # for common/ only; see include_error
    return folders


def include_error(root, path, kind, name):
    """Why the file at `path` may not include `name`, or None."""
    area = area_of(path)
    is_test = path.endswith("_test.cpp")
    if WHOLE_TORCH.match(name):
        return "torch's umbrella headers are not allowed; include ATen/ or c10/ headers"
    if ".." in name.split("/"):
        return "a path with .. leaves the component"
    if kind == '"' and name in GENERATED:
        return None
    if kind == '"':
        found = [folder for folder in quoted_folders(path) if (root / folder / name).is_file()]
        if found in (["model_adapters"], ["plugins"], ["backends"]) and not name.startswith("common/"):
            return "a plugin may include common/ and nothing of another plugin"
        return None if found or is_test else "not found in the component itself or core/include"
    if name.startswith("doctest/") and path.endswith(("_test.cpp", "_checks.hpp")):
        return None  # *_checks.hpp: what several tests share
    light = path.startswith(("core/include/", "sdk/include/", "core/src/")) and path.endswith((".h", ".hpp")) and path != PRECOMPILED
    if light and name.startswith(TORCH) and not name.startswith(LIGHT_TORCH):
        return "headers include LibTorch without its operators: ATen/core/Tensor.h"
    if name.startswith(TORCH + SYSTEM) or (name.startswith(PRIVATE[area]) if PRIVATE[area] else False):
        return None
    if VENDOR.match(name):
        return None if area == "backends" or path.startswith("plugins/") and path.endswith(".cu") else "vendor headers belong to backends"
    if "/" in name or name in NAMED_LIBRARIES or name.startswith("boost"):
        return f"{area} may not depend on this library"
    return None  # std and POSIX


# Rooms of core/src, as core/src/README.md describes them: each includes those before it.
ROOMS = ("util", "plugin", "data", "checkpoint", "compress", "quant", "ops", "statistics", "config", "model", "engines", "plan", "calibrate", "report", "write",
         "solve", "resume", "commands")

ADAPTER_ROOMS = ("files", "text", "chat", "image", "layers", "input", "models")
# Folder, what its includes begin with, and its rooms from the first to the last.
ROOMED = (("core/src/", "", ROOMS), ("model_adapters/common/", "common/", ADAPTER_ROOMS))


def room_error(path, kind, name):
    """Why a file in a room may not include one of another room, or None."""
    if kind != '"':
        return None
    for base, prefix, rooms in ROOMED:
        if not path.startswith(base) or "/" not in path[len(base):] or not name.startswith(prefix):
            continue
        own, other = path[len(base):].split("/")[0], name[len(prefix):].split("/")[0]
        if other not in rooms:
            continue
        if own not in rooms:
            return f"{base}{own} is no room"
        return f"room {own} comes before {other}" if rooms.index(other) > rooms.index(own) else None
    return None


def include_errors(root):
    files = sorted(p for top in ("core", "plugins", "model_adapters", "backends", "sdk") for p in (root / top).rglob("*")
                   if p.suffix in SUFFIXES and p.is_file())
    errors = []
    for file in files:
        path = file.relative_to(root).as_posix()
        if area_of(path) is None or "/template/" in path:
            continue
        for kind, name in INCLUDE.findall(file.read_text(encoding="utf-8")):
            why = include_error(root, path, kind, name) or room_error(path, kind, name)
            if why:
                errors.append(f"{path}: includes {name}: {why}")
    return files, errors


STD = re.compile(r"^(libstdc\+\+|libgcc_s|libc|libm|libpthread|libdl|librt|libgomp|ld-linux[-a-z0-9_]*|libasan|libubsan|libtsan)\.so")
LIBTORCH = re.compile(r"^lib(torch_cpu|c10)\.so")
IMAGES = re.compile(r"^lib(utf8proc|pcre2-8|jpeg|png16|webp|webpdemux|z)\.so")
GPU = re.compile(r"^lib(c10_cuda|torch_cuda|cudart|cublas|cublasLt|cusolver|cuda|nccl)\.so")
EXTRA = {"slim": re.compile(r"^lib(slim_core|slim_sdk|boost_program_options)\.so"), "sdk": re.compile(r"^libslim_core\.so"), "core": re.compile(r"^lib(tomlplusplus|boost_iostreams|yaml-cpp)\.so"),
         "algorithm": re.compile(r"^libslim_core\.so"), "format": re.compile(r"^libslim_core\.so"),
         "adapter": re.compile(rf"^libslim_core\.so|{IMAGES.pattern}"), "backend": re.compile(r"^libslim_core\.so"),
         "parquet": re.compile(r"^lib(arrow|parquet)\.so")}
EXPORTS = {kind: "slim_plugin_v1" for kind in ("algorithm", "format", "adapter", "backend")} | {"parquet": "slim_parquet_read_v1"}


def library_errors(build):
    subjects = [(build / "bin/slim", "slim"), (build / "lib/libslim_core.so", "core"),
                (build / "lib/libslim_sdk.so", "sdk")]
    for file in sorted((build / "lib/slim").glob("*/*.so")):  # plugins and components
        subjects.append((file, file.stem.removeprefix("libslim_").split("_")[0]))
    errors = []
    for file, kind in subjects:
        if not file.is_file():
            errors.append(f"{file}: not built")
            continue
        dynamic = subprocess.run(["readelf", "-d", file], capture_output=True, text=True, check=True).stdout
        for library in re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic):
            gpu_backend = file.name == "libslim_backend_cuda.so" and GPU.match(library)
            if not (STD.match(library) or LIBTORCH.match(library) or EXTRA[kind].match(library) or gpu_backend):
                errors.append(f"{file.name}: may not be linked with {library}")
        if kind in EXPORTS:
            symbols = subprocess.run(["nm", "-D", "--defined-only", file], capture_output=True, text=True, check=True).stdout
            exported = [line.split()[-1] for line in symbols.splitlines()]
            if exported != [EXPORTS[kind]]:
                errors.append(f"{file.name}: exports {exported[:5]}; expected {EXPORTS[kind]} alone")
    return subjects, errors


# (file, include, allowed): the rules themselves, on names that exist in this repository.
SELF_TEST = (("core/src/util/dtype.cpp", "<torch/torch.h>", False), ("core/src/util/dtype.cpp", "<boost/dll.hpp>", False),
             ("core/src/plugin/registry.cpp", "<boost/dll.hpp>", True), ("core/include/slim/plan.hpp", "<nlohmann/json.hpp>", False),
             ("core/include/slim/plan.hpp", '"data/dataset.h"', False), ("core/include/slim/plan.hpp", "<ATen/ATen.h>", False),
             ("core/include/slim/plan.hpp", "<ATen/core/Tensor.h>", True), ("core/src/model/exec.h", "<ATen/ATen.h>", False),
             ("core/src/model/exec.cpp", "<ATen/ATen.h>", True), ("core/src/util/dtype.cpp", "<vector>", True),
             ("core/src/util/dtype.cpp", '"plan/job.h"', False), ("core/src/plan/job.cpp", '"solve/run_parts.h"', False),
             ("core/src/util/dtype.cpp", "<cuda_runtime.h>", False), ("plugins/rtn/rtn.cpp", '"data/dataset.h"', False),
             ("plugins/rtn/rtn.cpp", '"slim/quant.hpp"', True), ("plugins/rtn/rtn.cpp", '"common/layers/transformer.hpp"', False),
             ("plugins/format_awq/awq_format.cpp", '"common/bit_stream.hpp"', True), ("plugins/rtn/rtn.cpp", '"awq/clip.h"', False),
             ("plugins/rtn/rtn.cpp", "<png.h>", False), ("plugins/rtn/rtn.cpp", '"../rtn/rtn.cpp"', False),
             ("model_adapters/qwen3vl/x.cpp", '"common/layers/transformer.hpp"', True),
             ("model_adapters/common/text/tokenizer.cpp", '"common/chat/chat.hpp"', False),
             ("model_adapters/common/chat/chat.cpp", '"common/text/tokenizer.hpp"', True),
             ("model_adapters/qwen3vl/x.cpp", '"hunyuan/hunyuan.hpp"', False),
             ("backends/cuda/x.cu", "<cuda_runtime.h>", True), ("sdk/cli/main.cpp", "<boost/program_options.hpp>", True),
             ("sdk/cli/main.cpp", "<boost/dll.hpp>", False))


def self_test_errors():
    errors = []
    for path, include, allowed in SELF_TEST:
        kind, name = include[0], include[1:-1]
        if ((include_error(ROOT, path, kind, name) or room_error(path, kind, name)) is None) != allowed:
            errors.append(f"self-test: {path} with {include}: expected {'no ' if allowed else 'an '}error")
    return errors


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    build = parser.parse_args().build
    errors = self_test_errors()
    files, found = include_errors(ROOT)
    errors += found
    libraries, found = library_errors(build)
    errors += found
    for error in errors:
        print(error)
    print(f"{len(files)} source files, {len(libraries)} libraries and programs: {len(errors)} violations")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
