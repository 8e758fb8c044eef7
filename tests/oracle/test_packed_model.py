"""Packing of checkpoints is exact for every bfloat16 value, and a changed or truncated file is refused."""
import argparse
import hashlib
import random
import struct
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "tools"))
import packed_model


def file_of(data):
    header = b'{"__metadata__":{}}     '
    return struct.pack("<Q", len(header)) + header + data


def refused(packed):
    try:
        packed_model.unpack_file(packed)
    except (ValueError, packed_model.zlib.error):
        return True
    return False


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    build = parser.parse_args().build
    every_value = struct.pack("<65536H", *range(65536))
    good = True
    for data in (b"", b"\x01\x02", every_value, random.Random(1).randbytes(20002)):
        good &= packed_model.unpack_file(packed_model.pack_file(file_of(data))) == file_of(data)
    packed = packed_model.pack_file(file_of(every_value))
    good &= refused(packed[:-1]) and refused(packed + b"x") and refused(packed[:-9] + b"123456789") and refused(b"x" + packed)
    try:
        packed_model.pack_file(file_of(b"odd"))
        good = False
    except ValueError:
        pass
    print("exact" if good else "NOT EXACT")

    folder = packed_model.unpacked(build, "toy-hunyuan-moe")
    source = ROOT / "tests" / "data" / "toy-hunyuan-moe"
    names = sorted(path.name for path in folder.iterdir())
    good &= names == sorted(path.name.removesuffix(".packed") for path in source.iterdir())
    before = (folder / "config.json").stat().st_mtime_ns
    good &= packed_model.unpacked(build, "toy-hunyuan-moe") == folder and (folder / "config.json").stat().st_mtime_ns == before
    print(f"{folder.name}: {len(names)} files, {hashlib.sha256((folder / names[0]).read_bytes()).hexdigest()[:12]}")

    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "packed"
        packed_model.pack(folder, copy)
        again = packed_model.unpack(copy, Path(scratch) / "again")
        good &= all((again / name).read_bytes() == (folder / name).read_bytes() for name in names)
        with open(copy / "model-00003-of-00003.safetensors.packed", "r+b") as file:
            file.seek(-5, 2)
            file.write(b"?")
        try:
            packed_model.unpack(copy, Path(scratch) / "model")
            good = False
        except SystemExit as error:
            good &= "SHA-256" in str(error)
    print("ok" if good else "FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
