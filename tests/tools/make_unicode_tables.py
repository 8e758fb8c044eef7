"""Writes model_adapters/common/text/unicode_tables.cpp: where the tokenizers library's Unicode differs from Unicode 14.0.

usage: python tests/tools/make_unicode_tables.py > model_adapters/common/text/unicode_tables.cpp
Needs a Python whose unicodedata is Unicode 14.0 (3.11), the oldest version that PCRE2 10.40 and later know.
"""
import unicodedata

from tokenizers import Regex, normalizers, pre_tokenizers

CATEGORIES = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co Cn".split()
CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def members(pattern):
    split = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    return {ord(ch) for text, _ in split.pre_tokenize_str("".join(map(chr, CODE_POINTS))) for ch in text}


def ranges(items):
    """(code point, value) pairs, ascending, to (first, last, value)."""
    out = []
    for c, value in items:
        if out and out[-1][1] == c - 1 and out[-1][2] == value:
            out[-1][1] = c
        else:
            out.append([c, c, value])
    return out


def unnormalized():
    """Characters that Unicode 14.0 reorders or (de)composes and the library does not."""
    nfd = normalizers.NFD().normalize_str
    marks = "\u0316\u0300\u0334\u035c\u0345"
    found = set()
    for c in CODE_POINTS:
        ch = chr(c)
        if unicodedata.combining(ch):
            probes = ["a" + ch + m for m in marks] + ["a" + m + ch for m in marks]
            if any(nfd(p) != unicodedata.normalize("NFD", p) for p in probes):
                found.add(c)
        if nfd(ch) != unicodedata.normalize("NFD", ch):
            found.add(c)
            found.add(ord(unicodedata.normalize("NFD", ch)[-1]))
    return found


def main():
    assert unicodedata.unidata_version == "14.0.0", unicodedata.unidata_version
    category = {c: name for name in CATEGORIES for c in members(r"\p{%s}" % name)}
    changes = ranges((c, category[c]) for c in CODE_POINTS if category[c] != unicodedata.category(chr(c)))
    print("// Written by tests/tools/make_unicode_tables.py.")
    print('#include "common/text/unicode.hpp"\n\nnamespace slim::model::unicode_tables {\n')
    print('const char* const kCategories = "%s";\n' % "".join(CATEGORIES))
    print("// General categories of the tokenizers library that are not those of Unicode 14.0.")
    print("const CategoryRange kCategoryChanges[] = {")
    rows = ["{0x%04X, 0x%04X, %d}," % (a, b, CATEGORIES.index(v)) for a, b, v in changes]
    for i in range(0, len(rows), 4):
        print("    " + " ".join(rows[i : i + 4]))
    print("};\nconst size_t kCategoryChangeCount = sizeof(kCategoryChanges) / sizeof(kCategoryChanges[0]);\n")
    print("// Characters of Unicode 10.0 to 14.0 that reorder or (de)compose, but not in the tokenizers library.")
    print("const Range kUnnormalized[] = {")
    rows = ["{0x%04X, 0x%04X}," % (a, b) for a, b, _ in ranges((c, 0) for c in sorted(unnormalized()))]
    for i in range(0, len(rows), 6):
        print("    " + " ".join(rows[i : i + 6]))
    print("};\nconst size_t kUnnormalizedCount = sizeof(kUnnormalized) / sizeof(kUnnormalized[0]);\n")
    print("}  // namespace slim::model::unicode_tables")


main()
