"""Decoded pixels must equal Pillow's bit for bit; patches and grids must equal those of transformers' processors.

    python tests/oracle/test_images.py --build BUILD_DIR

All images are generated here, from a fixed seed.
"""
import argparse
import io
import json
import os
import struct
import subprocess
import sys
import tempfile
import warnings
import zlib

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.utils import logging

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TOLERANCE = 1e-5
RANDOM = np.random.default_rng(20261121)

HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
QWEN3 = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2, **HALF}
QWEN2 = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, **CLIP}
IMAGE_OPTIONS = {
    "toy Qwen3-VL": {"size": {"longest_edge": 36864, "shortest_edge": 9216}, **QWEN3},
    "Qwen3-VL-4B": {"size": {"longest_edge": 16777216, "shortest_edge": 65536}, **QWEN3},
    "Qwen2.5-VL-3B": {"min_pixels": 3136, "max_pixels": 12845056, **QWEN2},
    "toy Qwen2.5-VL": {"min_pixels": 7056, "max_pixels": 28224, **QWEN2},
    "nothing given": {},
    "no normalization": {"do_normalize": False, **QWEN2},
    "no rescaling": {"do_rescale": False, **QWEN2},
    "another scale": {"rescale_factor": 1 / 127.5, **QWEN2},
}
VIDEO_OPTIONS = {
    "toy Qwen3-VL video": (Qwen3VLVideoProcessor, {"size": {"longest_edge": 294912, "shortest_edge": 9216}, **QWEN3}),
    "Qwen3-VL-4B video": (Qwen3VLVideoProcessor, {"size": {"longest_edge": 25165824, "shortest_edge": 4096}, **QWEN3}),
    "Qwen3-VL defaults": (Qwen3VLVideoProcessor, {}),
    "Qwen3-VL capped": (Qwen3VLVideoProcessor, {"cap_pixels_per_frame": True, "max_video_tokens": 40, **QWEN3}),
    "Qwen2-VL defaults": (Qwen2VLVideoProcessor, {}),
    "Qwen2.5-VL video": (Qwen2VLVideoProcessor, {"min_pixels": 3136, "max_pixels": 28224, **QWEN2}),
    "Qwen2-VL capped": (Qwen2VLVideoProcessor,
                        {"cap_pixels_per_frame": True, "max_video_tokens": 700, "min_pixels": 3136,
                         "max_pixels": 602112, **QWEN2}),
}


def picture(width, height, channels=3):
    """Smooth shapes, hard edges and noise, so that every part of a codec has work."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    planes = []
    for c in range(channels):
        wave = 127 + 90 * np.sin(x / (5 + 3 * c) + c) * np.cos(y / (7 + 2 * c))
        wave += 60 * (((x // 9 + y // 6 + c) % 2) - 0.5) + RANDOM.normal(0, 9, (height, width))
        planes.append(wave)
    return np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def filtered_rows(rows, bytes_per_pixel):
    """PNG scan lines, each with a filter of its own: 0 to 2 in turn."""
    out, above = b"", None
    for i, row in enumerate(rows):
        kind = i % 3
        line = np.frombuffer(row, np.uint8)
        left = np.concatenate([np.zeros(bytes_per_pixel, np.uint8), line])[: len(line)]
        up = np.zeros_like(line) if above is None or len(above) != len(line) else above
        out += bytes([kind]) + (line, line - left, line - up)[kind].tobytes()
        above = line
    return out


def packed(samples, bits):
    """Rows of samples as PNG stores them."""
    if bits == 16:
        return [row.astype(">u2").tobytes() for row in samples]
    if bits == 8:
        return [row.astype(np.uint8).tobytes() for row in samples]
    planes = (samples[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return [np.packbits(row.astype(np.uint8).reshape(-1)).tobytes() for row in planes]


ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def png(width, height, bits, color, before=b"", interlaced=False):
    """A PNG of random samples in any of the format's kinds of pixels, since Pillow writes only a few of them."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    samples = RANDOM.integers(0, 2**bits, (height, width, channels))
    if color == 0 and bits == 16:
        samples[::2] >>= 8  # half of the rows below the value where Pillow clips
    passes = ADAM7 if interlaced else [(0, 0, 1, 1)]
    data = b""
    for x, y, dx, dy in passes:
        part = samples[y::dy, x::dx]
        if part.size:
            data += filtered_rows(packed(part.reshape(part.shape[0], -1), bits), max(1, bits * channels // 8))
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, int(interlaced))
    compressed = zlib.compress(data)
    middle = len(compressed) // 2
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + chunk(b"IDAT", compressed[:middle]) +
            chunk(b"IDAT", compressed[middle:]) + chunk(b"IEND", b""))


def palette(entries):
    return chunk(b"PLTE", RANDOM.integers(0, 256, 3 * entries).astype(np.uint8).tobytes())


def jpeg_images():
    color, gray = Image.fromarray(picture(131, 77)), Image.fromarray(picture(131, 77, 1)[..., 0])
    cmyk = Image.fromarray(picture(67, 45, 4), "CMYK")
    images = {f"jpeg {name} {mode}": encoded(color, "JPEG", subsampling=sampling, progressive=mode == "progressive")
              for name, sampling in (("4:4:4", 0), ("4:2:2", 1), ("4:2:0", 2)) for mode in ("baseline", "progressive")}
    images |= {f"jpeg quality {q}": encoded(color, "JPEG", quality=q) for q in (1, 30, 100)}
    images |= {
        "jpeg 4:1:1": encoded(color, "JPEG", subsampling="4:1:1"),
        "jpeg 4:4:0": without_subsampling_across(color),
        "jpeg gray": encoded(gray, "JPEG"),
        "jpeg gray progressive": encoded(gray, "JPEG", progressive=True),
        "jpeg restart blocks": encoded(color, "JPEG", restart_marker_blocks=3),
        "jpeg restart rows progressive": encoded(color, "JPEG", restart_marker_rows=1, progressive=True),
        "jpeg rgb kept": encoded(color, "JPEG", keep_rgb=True),
        "jpeg cmyk": encoded(cmyk, "JPEG"),
        "jpeg cmyk progressive": encoded(cmyk, "JPEG", progressive=True, quality=95),
        "jpeg ycck": as_ycck(encoded(cmyk, "JPEG", quality=90)),
        "jpeg cmyk without adobe": without_adobe(encoded(cmyk, "JPEG", quality=90)),
        "jpeg 1x1": encoded(Image.fromarray(picture(1, 1)), "JPEG"),
        "jpeg 2x3": encoded(Image.fromarray(picture(2, 3)), "JPEG", subsampling=2),
        "jpeg 7x9": encoded(Image.fromarray(picture(7, 9)), "JPEG", subsampling=2),
        "jpeg wide": encoded(Image.fromarray(picture(1801, 11)), "JPEG"),
        "jpeg tall": encoded(Image.fromarray(picture(13, 1600)), "JPEG"),
        "jpeg 3000x2000": encoded(Image.fromarray(picture(3000, 2000)), "JPEG", quality=85),
        "jpeg icc and comment": encoded(color, "JPEG", icc_profile=b"x" * 5000, comment=b"hello"),
        # Not with chroma halved along height: there libjpeg-turbo before 3.0.1 smoothed the edges of blocks wrongly.
        "jpeg some scans missing": first_scans(encoded(color, "JPEG", progressive=True, subsampling=0), 3),
        "jpeg one scan": first_scans(encoded(color, "JPEG", progressive=True, subsampling=1), 1),
        "jpeg trailing data": encoded(color, "JPEG") + b"trailing",
        "jpeg damaged inside": damaged(encoded(color, "JPEG", quality=90)),
    }
    return images


def markers(data):
    """Offsets and codes of a JPEG file's segments up to the first scan."""
    at = 2
    while True:
        yield at, data[at + 1]
        if data[at + 1] == 0xDA:
            return
        at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]


def without_subsampling_across(image):
    """4:2:2 data with the sampling factors turned, which is a valid 4:4:0 file of the same number of blocks."""
    wide = encoded(image.crop((0, 0, 64, 64)), "JPEG", subsampling=1)
    frame = next(at for at, code in markers(wide) if code == 0xC0)
    return wide[: frame + 11] + b"\x12" + wide[frame + 12 :]


def as_ycck(data):
    """The Adobe marker says that the four components are YCCK."""
    adobe = next(at for at, code in markers(data) if code == 0xEE)
    return data[: adobe + 15] + b"\x02" + data[adobe + 16 :]


def without_adobe(data):
    adobe = next(at for at, code in markers(data) if code == 0xEE)
    return data[:adobe] + data[adobe + 16 :]


def first_scans(data, count):
    at = -1
    for _ in range(count + 1):
        at = data.index(b"\xff\xda", at + 1)
    return data[:at] + b"\xff\xd9"


def damaged(data):
    middle = len(data) * 2 // 3
    return data[:middle] + bytes((b ^ 0x55) & 0x7F for b in data[middle : middle + 4]) + data[middle + 4 :]


def png_images():
    kinds = {"gray": (0, (1, 2, 4, 8, 16)), "rgb": (2, (8, 16)), "palette": (3, (1, 2, 4, 8)),
             "gray alpha": (4, (8, 16)), "rgba": (6, (8, 16))}
    images = {}
    for name, (color, depths) in kinds.items():
        for bits in depths:
            for interlaced in (False, True):
                before = palette(min(2**bits, 256)) if color == 3 else b""
                images[f"png {name} {bits} bit{' interlaced' if interlaced else ''}"] = png(
                    37, 21, bits, color, before, interlaced)
    images |= {
        "png palette too short": png(30, 20, 8, 3, palette(100)),
        "png palette with transparency": png(30, 20, 8, 3, palette(256) + chunk(b"tRNS", bytes(range(200)))),
        "png palette with one transparent": png(30, 20, 4, 3, palette(16) + chunk(b"tRNS", b"\xff\xff\x00")),
        "png gray with transparency": png(30, 20, 4, 0, chunk(b"tRNS", b"\0\x07")),
        "png gray 16 with transparency": png(30, 20, 16, 0, chunk(b"tRNS", b"\x12\x07")),
        "png 1 bit with transparency": png(30, 20, 1, 0, chunk(b"tRNS", b"\0\x01")),
        "png rgb with transparency": png(30, 20, 8, 2, chunk(b"tRNS", b"\0\x07\0\x08\0\x09")),
        "png rgb 16 with transparency": png(30, 20, 16, 2, chunk(b"tRNS", b"\x12\x07\x34\x08\x56\x09")),
        "png gamma": png(30, 20, 8, 2, chunk(b"gAMA", struct.pack(">I", 220000))),
        "png suggested palette": png(30, 20, 8, 2, palette(20)),
        "png text": png(30, 20, 8, 6, chunk(b"tEXt", b"key\0value") + chunk(b"zTXt", b"k\0\0" + zlib.compress(b"v"))),
        "png 1x1": png(1, 1, 8, 2),
        "png 1x1 interlaced": png(1, 1, 1, 0, interlaced=True),
        "png 3x5 interlaced": png(3, 5, 16, 6, interlaced=True),
        "png wide": encoded(Image.fromarray(picture(2100, 11)), "PNG"),
        "png 1 wide": encoded(Image.fromarray(picture(1, 190)), "PNG"),
        "png animated": encoded(Image.fromarray(picture(40, 30)), "PNG", save_all=True,
                                append_images=[Image.fromarray(picture(40, 30))]),
        "png of a name": encoded(Image.fromarray(picture(301, 203)).quantize(32), "PNG"),
    }
    return images


def webp_images():
    color, alpha = Image.fromarray(picture(131, 77)), Image.fromarray(picture(131, 77, 4), "RGBA")
    frames = [Image.fromarray(picture(50, 40, 4), "RGBA") for _ in range(3)]
    images = {f"webp quality {q}": encoded(color, "WEBP", quality=q) for q in (0, 50, 100)}
    return images | {
        "webp lossless": encoded(color, "WEBP", lossless=True),
        "webp lossless alpha": encoded(alpha, "WEBP", lossless=True),
        "webp lossless exact alpha": encoded(alpha, "WEBP", lossless=True, exact=True),
        "webp lossy alpha": encoded(alpha, "WEBP", quality=70),
        "webp animated": encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True),
        "webp animated lossy": encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], quality=60),
        "webp 1x1": encoded(Image.fromarray(picture(1, 1)), "WEBP"),
        "webp 3x1 lossless": encoded(Image.fromarray(picture(3, 1)), "WEBP", lossless=True),
        "webp with profile": encoded(color, "WEBP", icc_profile=b"x" * 999, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"),
    }


def oriented_images():
    exif, images = Image.Exif(), {}
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        for format in ("JPEG", "PNG", "WEBP"):
            images[f"{format} orientation {orientation}"] = encoded(
                Image.fromarray(picture(23, 14)), format, exif=exif.tobytes())
    return images


class Tool:
    """slim_pixels and a folder for what goes in and out."""

    def __init__(self, build, folder):
        self.folder, self.files = folder, {}
        self.process = subprocess.Popen([os.path.join(build, "bin", "slim_pixels")], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)

    def file(self, data):
        path = os.path.join(self.folder, f"{len(self.files)}.image")  # the name tells nothing: the content must
        self.files[path] = data
        with open(path, "wb") as f:
            f.write(data)
        return path

    def run(self, kind, files, dtype, **job):
        out = os.path.join(self.folder, "out")
        self.process.stdin.write(json.dumps({"kind": kind, "files": files, "out": out, **job}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "error" not in answer:
            answer["tensor"] = np.fromfile(out, dtype).reshape(answer["shape"])
        return answer


class Checks:
    def __init__(self):
        self.count, self.failures, self.worst = 0, 0, 0.0

    def that(self, holds, what):
        self.count += 1
        if not holds:
            self.failures += 1
            print("FAILED:", what)


def rgb(data, transpose=False):
    image = Image.open(io.BytesIO(data))
    return np.asarray((ImageOps.exif_transpose(image) if transpose else image).convert("RGB"))


def check_decoding(tool, checks, images):
    for name, data in images.items():
        answer = tool.run("decode", [tool.file(data)], np.uint8)
        if "error" in answer:
            checks.that(False, f"{name}: {answer['error']}")
            continue
        expected = rgb(data)
        same = answer["tensor"].shape == expected.shape and np.array_equal(answer["tensor"], expected)
        most = np.abs(answer["tensor"].astype(int) - expected).max() if answer["tensor"].shape == expected.shape else "size"
        checks.that(same, f"{name}: pixels differ from Pillow's by up to {most}")


def check_orientation(tool, checks, images):
    for name, data in images.items():
        path = tool.file(data)
        for transpose in (False, True):
            answer = tool.run("decode", [path], np.uint8, exif=transpose)
            checks.that(np.array_equal(answer.get("tensor"), rgb(data, transpose)), f"{name}, transpose {transpose}")


def check_truncation(tool, checks, images):
    """No part of a file may give pixels that Pillow would not give. Pillow may accept a PNG without its last chunk."""
    refused = accepted = 0
    for name, data in images.items():
        for size in range(0, len(data), max(1, len(data) // 60)):
            answer = tool.run("decode", [tool.file(data[:size])], np.uint8)
            if "error" in answer:
                refused += 1
                continue
            accepted += 1
            try:
                checks.that(np.array_equal(answer["tensor"], rgb(data[:size])), f"{name} cut at {size}")
            except Exception as error:  # Pillow has no common base class for "cannot read this"
                checks.that(False, f"{name} cut at {size} of {len(data)} was decoded, but Pillow says {error}")
    checks.that(refused > 4 * accepted, "most truncated files are refused")
    print(f"truncated files: {refused} refused, {accepted} decoded as Pillow does")


def compare(checks, what, answer, values, grid):
    if "error" in answer:
        checks.that(False, f"{what}: {answer['error']}")
        return
    checks.that(answer["grid"] == grid, f"{what}: grid {answer['grid']}, expected {grid}")
    same = answer["tensor"].shape == values.shape
    checks.that(same, f"{what}: shape {answer['tensor'].shape}, expected {values.shape}")
    if same:
        difference = float(np.abs(answer["tensor"] - values).max())
        checks.worst = max(checks.worst, difference)
        checks.that(difference <= TOLERANCE, f"{what}: pixel_values differ by {difference}")


def fresh(options):
    """A processor changes the `size` it is given, so every one gets its own. None is left to the class."""
    copied = json.loads(json.dumps(options))
    if "min_pixels" in copied:
        copied["size"] = {"shortest_edge": copied.pop("min_pixels"), "longest_edge": copied.pop("max_pixels")}
    return copied


def check_patches(tool, checks, images):
    for label, options in IMAGE_OPTIONS.items():
        processor = Qwen2VLImageProcessor(**fresh(options))
        for name, data in images.items():
            image = Image.open(io.BytesIO(data)).convert("RGB")
            answer = tool.run("image", [tool.file(data)], np.float32, options=options)
            try:
                expected = processor(images=[image], return_tensors="pt")
            except ValueError as error:
                checks.that("error" in answer and "aspect ratio" in str(error), f"{name}, {label}: expected {error}")
                continue
            compare(checks, f"{name}, {label}", answer, expected["pixel_values"].float().numpy(),
                    expected["image_grid_thw"][0].tolist())


def check_videos(tool, checks):
    for label, (kind, options) in VIDEO_OPTIONS.items():
        processor = kind(**fresh(options))
        budget = "video" if kind is Qwen3VLVideoProcessor else "frame"
        for frames, width, height in ((2, 96, 64), (3, 131, 77), (5, 20, 31), (8, 640, 360), (1, 50, 60)):
            stack = [picture(width, height) for _ in range(frames)]
            files = [tool.file(encoded(Image.fromarray(frame), "PNG")) for frame in stack]
            answer = tool.run("video", files, np.float32, options=options, budget=budget)
            what = f"{frames} frames of {width}x{height}, {label}"
            try:
                expected = processor(videos=[torch.from_numpy(np.stack(stack)).permute(0, 3, 1, 2)],
                                     do_sample_frames=False, return_tensors="pt")
            except ValueError as error:
                checks.that("error" in answer, f"{what}: expected {error}")
                continue
            compare(checks, what, answer, expected["pixel_values_videos"].numpy(), expected["video_grid_thw"][0].tolist())


def check_cap(tool, checks):
    """A capped image is what transformers makes with max_pixels lowered to the cap."""
    data = encoded(Image.fromarray(picture(640, 400)), "PNG")
    options = IMAGE_OPTIONS["Qwen3-VL-4B"]
    path = tool.file(data)
    whole = tool.run("image", [path], np.float32, options=options, max_patches=24 * 40)
    checks.that(whole["downscaled"] is False and whole["grid"] == [1, 24, 40], f"a cap that is met: {whole['grid']}")
    for cap in (24 * 40 - 1, 256, 40, 16):
        answer = tool.run("image", [path], np.float32, options=options, max_patches=cap)
        lowered = Qwen2VLImageProcessor(**{**options, "size": {"shortest_edge": 1, "longest_edge": cap * 256}})
        expected = lowered(images=[Image.open(io.BytesIO(data))], return_tensors="pt")
        compare(checks, f"at most {cap} patches", answer, expected["pixel_values"].numpy(),
                expected["image_grid_thw"][0].tolist())
        checks.that(answer["downscaled"] is True and np.prod(answer["grid"]) <= cap, f"at most {cap} patches: flag or size")


def check_checkpoints(tool, checks):
    """Options read from the folders of the test models, as the processors themselves read them."""
    data = encoded(Image.fromarray(picture(150, 220)), "PNG")
    for folder in ("toy-qwen3vl", "toy-qwen25vl"):
        path = os.path.join(ROOT, "tests", "data", folder)
        answer = tool.run("image", [tool.file(data)], np.float32, folder=path)
        expected = Qwen2VLImageProcessor.from_pretrained(path)(images=[Image.open(io.BytesIO(data))], return_tensors="pt")
        compare(checks, folder, answer, expected["pixel_values"].numpy(), expected["image_grid_thw"][0].tolist())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    checks = Checks()
    jpegs, pngs, webps, turned = jpeg_images(), png_images(), webp_images(), oriented_images()
    with tempfile.TemporaryDirectory() as folder:
        tool = Tool(arguments.build, folder)
        images = jpegs | pngs | webps
        check_decoding(tool, checks, images | turned)
        check_orientation(tool, checks, turned)
        small = ("jpeg 7x9", "jpeg 4:2:0 progressive", "jpeg cmyk", "png rgb 8 bit", "png palette 4 bit interlaced",
                 "webp quality 50", "webp lossless", "webp animated", "webp lossy alpha")
        check_truncation(tool, checks, {name: images[name] for name in small})
        chosen = ("jpeg 1x1", "jpeg 7x9", "jpeg wide", "jpeg tall", "jpeg 4:2:0 baseline", "jpeg 3000x2000", "jpeg cmyk",
                  "png 1x1", "png gray 16 bit", "png wide", "png 1 wide", "png of a name", "webp lossy alpha")
        check_patches(tool, checks, {name: images[name] for name in chosen})
        check_videos(tool, checks)
        check_cap(tool, checks)
        check_checkpoints(tool, checks)
    print(f"{len(images) + len(turned)} images, {checks.count} checks, {checks.failures} failed; "
          f"largest difference of pixel_values {checks.worst:g}")
    return 1 if checks.failures else 0


if __name__ == "__main__":
    sys.exit(main())
