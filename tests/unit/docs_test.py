"""Tutorials show code that is built and run: a code block under `<!-- from FILE -->` stands in FILE, word for word. Links lead somewhere.

    python tests/unit/docs_test.py
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"<!-- from (\S+) -->\n```[a-z]*\n(.*?)\n```", re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
CODE = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)
TUTORIALS = ("write-an-algorithm.md", "write-an-adapter.md", "write-a-backend.md", "write-a-format.md", "embed.md")
# Libraries of slim's own that no public header may show.
HIDDEN = re.compile(r"boost|nlohmann|simdjson|toml\+\+|toml::|json\.hpp", re.IGNORECASE)


def lines_of(text):
    return text.splitlines()


def stands_in(block, text):
    """True if the lines of the block follow each other in the text."""
    wanted, lines = lines_of(block), lines_of(text)
    return any(lines[i:i + len(wanted)] == wanted for i in range(len(lines) - len(wanted) + 1))


def block_errors(page):
    text = page.read_text(encoding="utf-8")
    blocks = BLOCK.findall(text)
    if not blocks:
        yield f"{page.name}: shows no code"
    for name, block in blocks:
        file = ROOT / name
        if not file.is_file():
            yield f"{page.name}: {name} does not exist"
        elif not stands_in(block, file.read_text(encoding="utf-8")):
            yield f"{page.name}: this block does not stand in {name}:\n{block}"
    shown = len(re.findall(r"^```(?:cpp|c|cmake|python)$", text, re.MULTILINE))
    if shown != len(blocks):
        yield f"{page.name}: {shown - len(blocks)} code blocks do not say where they are from"


def link_errors(page):
    for link in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        if "://" not in link and not (page.parent / link).exists():
            yield f"{page.relative_to(ROOT)}: the link {link} leads nowhere"


def header_errors():
    headers = sorted([*(ROOT / "core/include").rglob("*.h*"), *(ROOT / "sdk/include").rglob("*.h*")])
    for header in headers:
        for number, line in enumerate(lines_of(header.read_text(encoding="utf-8")), 1):
            if HIDDEN.search(line):
                yield f"{header.relative_to(ROOT)}:{number}: shows a private library: {line.strip()}"
    if len(headers) < 10:
        yield "the public headers were not found"


def template_errors():
    algorithm = ROOT / "sdk/templates/algorithm/my_algorithm.cpp"
    if len(lines_of(algorithm.read_text(encoding="utf-8"))) > 150:
        yield "the algorithm's template has more than 150 lines"
    for file in (ROOT / "sdk/templates").rglob("*"):
        if file.suffix in {".cpp", ".py"} and "SPDX-License-Identifier" not in lines_of(file.read_text(encoding="utf-8"))[0]:
            yield f"{file.relative_to(ROOT)}: its first line names no licence"


def main():
    errors = [error for name in TUTORIALS for error in block_errors(ROOT / "docs" / name)]
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        errors += link_errors(page)
    errors += [*header_errors(), *template_errors()]
    for error in errors:
        print(error)
    print(f"{len(TUTORIALS)} tutorials: {len(errors)} errors")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
