"""Unusual and malformed data sets through the program: each works as it does with Pillow, or gives one error with file and line; with
--skip-bad-samples the run goes on, and the report names what was skipped.
"""
import io
import json
import re
import sys

import numpy as np
from PIL import Image

from data_runs import run_checks

WORKS = None  # instead of what the error says


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height, width, *channels, dtype=np.uint8):
    return np.random.default_rng(7).integers(0, np.iinfo(dtype).max, (height, width, *channels), dtype=dtype)


def pictures():
    """name -> (file's bytes, what the error says or WORKS)"""
    colors = [Image.new("RGB", (64, 48), color) for color in ("red", "green", "blue")]
    png = encoded(colors[0], "PNG")
    no_width = png[:16] + bytes(4) + png[20:]
    return {
        "animated.webp": (encoded(colors[0], "WEBP", save_all=True, append_images=colors[1:], duration=50), WORKS),
        "animated.png": (encoded(colors[0], "PNG", save_all=True, append_images=colors[1:]), WORKS),
        "cmyk.jpg": (encoded(Image.fromarray(noise(48, 64, 4), "CMYK"), "JPEG"), WORKS),
        "gray16.png": (encoded(Image.fromarray(noise(48, 64, dtype=np.uint16)), "PNG"), WORKS),
        "palette.png": (encoded(colors[0].quantize(4), "PNG"), WORKS),
        "transparent.png": (encoded(Image.fromarray(noise(48, 64, 4), "RGBA"), "PNG"), WORKS),
        "one_bit.png": (encoded(Image.fromarray(noise(48, 64)).convert("1"), "PNG"), WORKS),
        "grayscale.jpg": (encoded(Image.fromarray(noise(48, 64)), "JPEG"), WORKS),
        "misnamed.jpg": (encoded(colors[1], "WEBP"), WORKS),
        "one_pixel.png": (encoded(Image.new("RGB", (1, 1)), "PNG"), WORKS),
        "100_megapixels.png": (encoded(Image.new("L", (10_000, 10_000)), "PNG"), WORKS),
        "200_megapixels.png": (encoded(Image.new("1", (20_000, 10_000)), "PNG"), "20000 x 10000 pixels, over the limit"),
        "wide.png": (encoded(Image.new("RGB", (4000, 4)), "PNG"), "aspect|ratio|narrow"),
        "empty.png": (b"", "empty|0 bytes|no image"),
        "no_width.png": (no_width, "pixels|width|checksum|IHDR"),
        "half.png": (encoded(Image.fromarray(noise(48, 64, 3)), "PNG")[:2000], "damaged|truncated|ends"),
        "half.jpg": (encoded(Image.fromarray(noise(480, 640, 3)), "JPEG")[:2000], "damaged|truncated|ends"),
        "text.png": (b"this is no image", "JPEG|PNG|WebP"),
        "image.gif": (encoded(colors[0], "GIF"), "JPEG|PNG|WebP"),
        "image.bmp": (encoded(colors[0], "BMP"), "JPEG|PNG|WebP"),
    }


def lines(folder):
    """(name, line of JSONL, what the error says or WORKS)"""
    for name, (content, says) in pictures().items():
        (folder / name).write_bytes(content)
        yield name, json.dumps({"question": "What is it?", "answer": "a picture", "image": name}), says
    (folder / "images").mkdir()
    (folder / "images/beside.png").write_bytes((folder / "palette.png").read_bytes())
    (folder / "a_folder.png").mkdir()
    question = {"question": "What is it?", "answer": "a picture"}
    for name, value, says in (
        ("image in images/", {**question, "image": "beside.png"}, WORKS),
        ("frames of a video", {"messages": [{"role": "user", "content": [{"type": "video", "video": ["palette.png", "cmyk.jpg"]}, {"type": "text", "text": "?"}]}]}, WORKS),
        ("a number as answer", {**question, "answer": 7}, WORKS),
        ("missing image", {**question, "image": "gone.png"}, "'gone.png' not found"),
        ("folder as image", {**question, "image": "a_folder.png"}, "a_folder.png"),
        ("image of the web", {**question, "image": "https://example.com/a.png"}, "not on this machine"),
        ("image of a wrong type", {**question, "image": 7}, "found number"),
        ("prompt and completion", {"prompt": "?", "completion": "!"}, WORKS),
        ("wrong column", {"title": "?", "body": "!"}, "found 'body', 'title'"),
        ("unknown part", {"messages": [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}]}, "'audio'"),
        ("video file", {"messages": [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}]}, "list of its frames"),
        ("unknown role", {"messages": [{"role": "narrator", "content": "?"}]}, "'narrator'"),
        ("more places than images", {**question, "question": "<image><image>", "image": "palette.png"}, "more places"),
    ):
        yield name, json.dumps(value), says
    yield "broken JSON", '{"text": "unfinished', "malformed JSON"
    yield "no JSON", "hello", "malformed JSON"
    yield "no object", "[1, 2]", "found array"
    yield "bytes that are no UTF-8", '{"text": "\udcff"}', "malformed JSON"


def check_lines(checks, slim):
    work = slim.work
    cases = list(lines(work))
    write = lambda file, texts: (work / file).write_text("\n".join(texts), errors="surrogateescape")
    for case, line, says in cases:
        if says is WORKS:
            continue
        write("data.jsonl", ['{"text": "a first sample"}', line])
        code, error = slim.quantize(work / "data.jsonl")
        one_line = error.startswith("slim: error: ") and "\n" not in error
        checks.expect(code == 1 and one_line and "data.jsonl:2: " in error and re.search(says, error), case, error)
    write("all.jsonl", [line for _, line, _ in cases])
    code, report = slim.quantize(work / "all.jsonl", "--skip-bad-samples", "--max-seq-length", 64)
    if checks.expect(code == 0, "--skip-bad-samples goes on", report):
        number = lambda text: int(re.match(r".*all\.jsonl:(\d+)", text)[1])
        used = {number(sample["origin"]) for sample in report["by_sample"]}
        skipped = {number(text): text for text in report["skipped"]}
        for i, (case, _, says) in enumerate(cases, 1):
            checks.expect((i in used) == (says is WORKS) and (i in skipped) == (says is not WORKS), f"{case}: used or skipped", skipped.get(i, "used"))
            checks.expect(says is WORKS or re.search(says, skipped.get(i, "")), f"{case}: the report says why", skipped.get(i))


if __name__ == "__main__":
    sys.exit(run_checks(check_lines))
