#!/usr/bin/env python3
"""Keeps a checkpoint of bfloat16 weights in two thirds of its bytes, bit for bit.

    packed_model.py pack MODEL PACKED       every *.safetensors becomes *.safetensors.packed
    packed_model.py unpack PACKED MODEL     and back, each file checked against its SHA-256; does nothing when it is done

Signs and mantissas of trained weights are noise and are stored as they are; their exponents take few values, so
they are split off and Huffman-coded. All other files are copied. Needs nothing but Python's standard library.
"""
import argparse
import fcntl
import hashlib
import json
import shutil
import struct
import sys
import zlib
from pathlib import Path

MAGIC = b"bf16 planes 1\n"
SUFFIX = ".packed"


def repeated(byte, count):
    return int.from_bytes(bytes([byte]) * count, "little")


def split(data):
    """bfloat16 (sign, 8 bits of exponent, 7 of mantissa) -> exponents, signs with mantissas. Big integers are byte vectors."""
    count = len(data) // 2
    low, high = int.from_bytes(data[0::2], "little"), int.from_bytes(data[1::2], "little")
    exponents = (high & repeated(0x7F, count)) << 1 | low >> 7 & repeated(0x01, count)
    rest = high & repeated(0x80, count) | low & repeated(0x7F, count)
    return exponents.to_bytes(count, "little"), rest.to_bytes(count, "little")


def join(exponents, rest):
    count = len(rest)
    exponents, rest = int.from_bytes(exponents, "little"), int.from_bytes(rest, "little")
    high = exponents >> 1 & repeated(0x7F, count) | rest & repeated(0x80, count)
    low = (exponents & repeated(0x01, count)) << 7 | rest & repeated(0x7F, count)
    data = bytearray(2 * count)
    data[0::2], data[1::2] = low.to_bytes(count, "little"), high.to_bytes(count, "little")
    return data


def huffman(data):
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    return packer.compress(data) + packer.flush()


def pack_file(content):
    header = 8 + struct.unpack("<Q", content[:8])[0]
    if (len(content) - header) % 2:
        raise ValueError("the data are not 16-bit numbers")
    exponents, rest = split(content[header:])
    parts = [zlib.compress(content[:header], 9), huffman(exponents), rest]
    facts = {"sha256": hashlib.sha256(content).hexdigest(), "parts": [len(part) for part in parts]}
    return MAGIC + json.dumps(facts).encode() + b"\n" + b"".join(parts)


def unpack_file(packed):
    if not packed.startswith(MAGIC):
        raise ValueError("not a packed checkpoint file")
    end = packed.index(b"\n", len(MAGIC)) + 1
    facts = json.loads(packed[len(MAGIC):end])
    header, exponents, rest = facts["parts"]
    if len(packed) != end + header + exponents + rest:
        raise ValueError(f"{len(packed)} bytes, expected {end + header + exponents + rest}")
    content = zlib.decompress(packed[end:end + header])
    end += header
    content += join(zlib.decompress(packed[end:end + exponents], -15), packed[end + exponents:])
    if hashlib.sha256(content).hexdigest() != facts["sha256"]:
        raise ValueError("SHA-256 of the unpacked file differs")
    return content


def pack(model, packed):
    packed.mkdir(parents=True, exist_ok=True)
    for path in sorted(model.iterdir()):
        if path.suffix != ".safetensors":
            shutil.copyfile(path, packed / path.name)
            continue
        content = path.read_bytes()
        result = pack_file(content)
        if unpack_file(result) != content:
            raise ValueError(f"{path}: does not survive packing")
        (packed / (path.name + SUFFIX)).write_bytes(result)


def fingerprint(packed):
    digest = hashlib.sha256()
    for path in sorted(packed.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def unpack(packed, model):
    """Tests may do this at the same time: one does it, the others wait."""
    wanted = fingerprint(packed)
    model.parent.mkdir(parents=True, exist_ok=True)
    with open(model.parent / (model.name + ".sha256"), "a+") as stamp:
        fcntl.flock(stamp, fcntl.LOCK_EX)
        stamp.seek(0)
        if stamp.read() == wanted and model.is_dir():
            return model
        stamp.truncate(0)
        shutil.rmtree(model, ignore_errors=True)
        model.mkdir()
        for path in sorted(packed.iterdir()):
            if path.suffix == SUFFIX:
                try:
                    (model / path.stem).write_bytes(unpack_file(path.read_bytes()))
                except (ValueError, zlib.error) as error:
                    sys.exit(f"{path}: {error}")
            else:
                shutil.copyfile(path, model / path.name)
        stamp.write(wanted)
    return model


def unpacked(build, name):
    """The folder of a checkpoint of tests/data, unpacked where it is kept packed."""
    folder = Path(__file__).resolve().parents[1] / "data" / name
    return unpack(folder, Path(build).resolve() / "models" / name) if any(folder.glob("*" + SUFFIX)) else folder


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["pack", "unpack"])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    (pack if args.action == "pack" else unpack)(args.source, args.target)


if __name__ == "__main__":
    main()
