"""The native chat templates print what transformers prints, for toy and real templates and for fragments of the language.

usage: python tests/oracle/test_chat.py --build BUILD_DIR [--templates FILE...]
"""
import argparse
import itertools
import json
import random
import subprocess
import sys
from pathlib import Path

from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import _compile_jinja_template

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"

# Fragments run with GLOBALS. Those of REFUSED must be errors in both.
GLOBALS = {"s": "  <a> b\u00e9 c \u3000", "n": 7, "m": -3, "t": True, "no": None, "l": ["x", "y", "z", 1], "e": [], "z": "",
           "d": {"a": 1, "b": {"c": "deep", "items": 5}, "q": "it's \"q\" \u00e9 \n \u0001"}, "ls": ["b", "a"],
           "dd": [{"k": 1, "v": "p"}, {"k": 0, "v": "q"}, {"v": "r"}]}
FRAGMENTS = [
    "a\n{% if t %}\nb\n{% endif %}\nc\n", "  {% if t %}  x  {% endif %}  y", "  {%- if t -%}  x  {%- endif -%}  y",
    "a  {%+ if t %}x{% endif +%}\nb", "{{ n }}\n{{- n -}}\n{{ n }}", "{# c #}\nx\n  {# d #}\n y {#- e -#} z", "x\r\ny\rz\n\n",
    "{% for i in l %}\n  {{ i }}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}\n{% endfor %}",
    "{% for i in e %}a{% else %}none{% endfor %}", "{% for i in l if i is string %}{{ loop.index }}{{ i }}{% endfor %}",
    "{% for k, v in d.items() %}{{ k }},{% endfor %}", "{% for k, v in d|items %}{{ k }},{% endfor %}", "{% for k in d %}{{ k }}{% endfor %}",
    "{% for c in s %}[{{ c }}]{% endfor %}", "{% for i in l %}{% if i == 'y' %}{% continue %}{% endif %}{{ i }}{% if loop.index == 3 %}{% break %}{% endif %}{% endfor %}",
    "{% for i in l %}{{ loop.previtem }}<{{ i }}>{{ loop.nextitem }} {% endfor %}", "{% set x = 1 %}{% for i in l %}{% set x = x + 1 %}{{ x }}{% endfor %}{{ x }}",
    "{% set ns = namespace(a=1) %}{% for i in l %}{% set ns.a = ns.a + 1 %}{% endfor %}{{ ns.a }}", "{% set x %}  body {{ n }} {% endset %}[{{ x }}]",
    "{% macro f(a, b=2, c=z) %}{{ a }}{{ b }}{{ c }}{{ n }}{% endmacro %}{{ f(1) }}|{{ f(1, c=3) }}|{{ f(c=9, a=8) }}",
    "{% macro f(k) %}{% if k > 0 %}{{ k }}{{ f(k - 1) }}{% endif %}{% endmacro %}{{ f(5) }}", "{% for i in l %}{% macro g() %}!{% endmacro %}{{ g() }}{% endfor %}",
    "{{ s|trim }}|{{ s.strip() }}|{{ s.lstrip() }}|{{ s.rstrip() }}|{{ s.strip(' <') }}|{{ s.strip('\u3000 c') }}", "{{ s.split()|length }}",
    "{{ s.split('b')[0] }}|{{ s.split('b')[-1] }}|{{ 'a,b,c'.split(',', 1)[1] }}|{{ ''.split(',')|length }}|{{ ' a  b '.split(none, 1)[1] }}",
    "{{ l[0] }}{{ l[-1] }}{{ l[9] }}{{ s[2] }}{{ s[-1] }}{{ d['a'] }}{{ d.b.c }}{{ d.nope }}{{ d['b']['c'] }}",
    "{{ l[1:]|length }}{{ l[:-1]|length }}{{ l[::-1][0] }}{{ s[1:4] }}{{ s[::-1] }}{{ s[-3:] }}{{ l[5:] | length }}{{ s[::2] }}{{ s[4:1:-1] }}{{ s[-99:99] }}",
    "{{ 1 + 2 * 3 - 4 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ n * m }} {{ -n }} {{ 'a' ~ 1 ~ true ~ none }} {{ 'a' + 'b' }}",
    "{{ 1 == 1 }} {{ 1 != 2 }} {{ 'a' < 'b' }} {{ 2 >= 3 }} {{ 'x' in l }} {{ 'q' not in l }} {{ 'be' in 'abed' }} {{ 'a' in d }} {{ true == 1 }}",
    "{{ t and z }}|{{ z or 'f' }}|{{ not z }}|{{ not t and t }}|{{ t or missing.x }}|{{ not (t and z) }}", "{{ 'y' if t else 'n' }}{{ 'y' if z }}{{ 'a' if z else 'b' if e else 'c' }}",
    "{{ s is string }}{{ n is string }}{{ q is defined }}{{ n is not defined }}{{ no is none }}{{ d is mapping }}{{ l is iterable }}{{ d is iterable }}{{ s is sequence }}{{ n is iterable }}",
    "{{ t is true }}{{ n is true }}{{ z is false }}{{ t is boolean }}{{ n is number }}{{ t is integer }}{{ n is integer }}{{ q is undefined }}{{ 'x' is in l }}{{ n is eq 7 }}{{ n is not none and t }}",
    "{{ d|tojson }}{{ l|tojson }}{{ s|tojson }}{{ no|tojson }}{{ t|tojson }}{{ [1, 'a', {'b': none}]|tojson }}{{ {}|tojson }}", "{{ l|length }}{{ d|length }}{{ s|length }}{{ e|count }}",
    "{{ l|join('-') }}{{ l|join }}{{ l|first }}{{ l|last }}{{ ls|list|length }}{{ 'abc'|upper }}{{ 'ABC'.lower() }}{{ 'aXbX'|replace('X', 'yy') }}{{ 'aa'.replace('a','b') }}",
    "{{ q|default('x') }}{{ z|default('x') }}{{ z|default('x', true) }}{{ n|string ~ 'x' }}{{ q|d('y') }}", "{{ l|reject('in', ['x', 1])|join }}{{ l|select('string')|list|join }}{{ dd|selectattr('k')|list|length }}{{ dd|selectattr('v', 'equalto', 'q')|list|length }}{{ dd|rejectattr('k', 'defined')|list|length }}",
    "{{ 'a\\n\\t\\'\\\"\\\\\\u00e9\\x41\\d' }}{{ \"it's\" }}{{ 'two' ' parts' }}", "{{ d.get('a') }}{{ d.get('x') }}{{ d.get('x', 5) }}{{ d.keys()|list|length }}{{ d.values()|first }}",
    "{{ (1, 2)|length }}{{ [1, 2,]|length }}{{ ()|length }}{% for a, b in [(1, 2), [3, 4]] %}{{ a }}{{ b }}{% endfor %}", "{{ range(3)|join }}{{ range(1, 7, 2)|join }}{{ range(5, 0, -2)|join }}",
    "{% generation %}a{% endgeneration %}b", "{{ missing }}{% for i in missing %}x{% endfor %}{{ missing is string }}{% if missing %}y{% endif %}{{ 'a' in missing }}",
    "{% if n > 5 and m < 0 %}a{% elif n %}b{% else %}c{% endif %}{% if z %}a{% elif n == 7 %}b{% else %}c{% endif %}{% if z %}{% elif z %}{% else %}c{% endif %}",
    "{{- '{{ x }}' -}} }} %} {{ '%}' }}", "{{ l[loop_index - 1] if false else l[n - 7] }}", "{{ n|string|length + 1 }}", "{{ 'a' 'b'|upper }}{{ ('a' ~ 'b')|upper }}",
    "{%- for i in l %}\n    {%- if i is string %}\n        {{- i }}\n    {%- endif %}\n{%- endfor %}\n", "{% if t %}{# x #}\n  {% if t %}\n z\n  {%+ endif %}\n{%- endif %}", "{{ d.b['items'] }}{{ ns is defined }}{{ s.startswith('  ') }}{{ s.endswith('x') }}",
]
REFUSED = ["{{ missing.x }}", "{{ missing.x.y }}", "{{ raise_exception('no') }}", "{{ 1 + 'a' }}", "{{ 'a' + none }}", "{% if t %}", "{{ x", "{{ 'a }}", "{% nope %}", "{{ l|nope }}", "{{ l is nope }}",
           "{{ f() }}", "{{ (1 }}", "{% endfor %}", "{{ 1 // 0 }}", "{% for i in n %}{% endfor %}", "{{ }}", "{% set ns.a = 1 %}", "{{ l[0].x.y }}", "{# x", "{% for i in %}{% endfor %}", "{{ {'a' 1} }}",
           "{% macro f(a) %}{% endmacro %}{{ f(1, 2) }}", "{% macro f(a) %}{{ f(a) }}{% endmacro %}{{ f(1) }}", "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}"]
# Bounded here, and without end or far too slow in Jinja: only ours is run.
HOSTILE = ["{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "{% set ns = namespace(s='abcdefgh') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
           "{% set ns = namespace(v=[]) %}{% for i in range(99999) %}{% set ns.v = [ns.v] %}{% endfor %}", "{{ 1" + " + 1" * 100000 + " }}", "{% if t %}" * 3000, "{{ " + "-" * 100000 + "1 }}", "{{ a" + ".a" * 100000 + " }}",
           "{{ " + "not " * 100000 + "1 }}", "{{ a" + "|trim" * 100000 + " }}", "{{ 99999999999999999999 }}", "{{ 999999999999999999 * 999999999 }}", "{% if z %}" + "{% elif z %}" * 50000 + "{% endif %}", "{{ [" * 90000]

TEXTS = ["Hi", " two words \n", "", "a <|im_end|> b", "<think>\nwhy\n</think>\n\nbecause", "\u4f60\u597d\n\n", "<tool_response>x</tool_response>", "no close <think> x"]
TOOLS = [{"type": "function", "function": {"name": "w", "description": "caf\u00e9 \"q\"", "parameters": {"type": "object", "properties": {
    "a": {"type": "string", "description": " d "}, "b": {"type": "integer", "enum": [1, 2]}}, "required": ["a"]}}}]
CALL = {"role": "assistant", "content": "", "tool_calls": [
    {"type": "function", "function": {"name": "w", "arguments": {"a": "x\ny", "b": 2, "c": [1, {"d": True}]}}}, {"name": "v", "arguments": {}}]}


def conversations(rng, images):
    """Lists of messages of many shapes; with images, contents are lists of parts."""
    def content():
        if not images or rng.random() < 0.3:
            return rng.choice(TEXTS)
        kinds = rng.choices(("text", "text", "image", "video"), k=rng.randrange(4))
        return [{"type": k, **({"text": rng.choice(TEXTS)} if k == "text" else {})} for k in kinds]

    for _ in range(60):
        chat = [{"role": "system", "content": rng.choice(TEXTS)}] if rng.random() < 0.4 else []
        for i in range(rng.randrange(0, 6)):
            role = ("user", "assistant")[i % 2] if rng.random() < 0.8 else rng.choice(("user", "assistant", "system", "tool", "odd"))
            chat.append({"role": role, "content": content()})
        if rng.random() < 0.3:
            chat += [CALL, {"role": "tool", "content": "r1"}, {"role": "tool", "content": "r2"}, {"role": "assistant", "content": "done"}]
        yield chat


def reference(template, variables):
    try:
        return _compile_jinja_template(template).render(**variables)
    except Exception as error:
        return error


def native(cases):
    done = subprocess.run([args.build / "bin" / "slim_chat"], input=json.dumps({"cases": cases}).encode(), capture_output=True)
    if done.returncode != 0:
        sys.exit(f"slim_chat ended with {done.returncode}: {done.stderr.decode()[-2000:]}")
    return json.loads(done.stdout)


def compare(name, cases, expected):
    wrong = errors = refused = 0
    for case, want, got in zip(cases, expected, native(cases)):
        errors += isinstance(want, Exception)
        if got.get("error", "").endswith(("printing a list is not supported", "printing a mapping is not supported")):
            refused += 1  # Python's notation of containers is no text that a model was trained on
            continue
        if isinstance(want, Exception) if "error" in got else got["text"] == want:
            continue
        wrong += 1
        if wrong <= 4:
            print(f"{name}: {json.dumps(case, ensure_ascii=False)[:1500]}\n  expected {want!r}\n  found    {got}")
    print(f"{name}: {len(cases)} renderings ({errors} errors, {refused} print containers): {wrong} differ")
    return wrong == 0


def fragments():
    cases = [{"template": f, "globals": GLOBALS} for f in FRAGMENTS + REFUSED]
    expected = [reference(c["template"], GLOBALS) for c in cases]
    for fragment, text in zip(FRAGMENTS, expected):
        assert not isinstance(text, Exception), (fragment, text)
    for fragment, text in zip(REFUSED, expected[len(FRAGMENTS) :]):
        assert isinstance(text, Exception), fragment
    good = compare("fragments", cases, expected)
    for template, got in zip(HOSTILE, native([{"template": t, "globals": GLOBALS} for t in HOSTILE])):
        if "error" not in got:
            good = False
            print(f"hostile template was rendered: {template[:80]}")
    return good


def template_file(path):
    template = path.read_text()
    rng = random.Random(path.name)
    flags = [dict(zip(("tools", "enable_thinking", "add_vision_id", "add_generation_prompt"), f))
             for f in itertools.product((None, TOOLS), (None, True, False), (None, True), (True, False))]
    cases = []
    for chat in [c for images in (False, True) for c in conversations(rng, images)]:
        chosen = {k: v for k, v in rng.choice(flags).items() if v is not None or k == "tools"}
        cases.append({"template": template, "globals": {"messages": chat, **chosen}})
    return compare(path.name, cases, [reference(template, c["globals"]) for c in cases])


def folder(path):
    """The whole way of an adapter: from_folder and Messages, against the tokenizer's apply_chat_template."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    rng = random.Random(path.name)
    chats = [[m for m in chat if "tool_calls" not in m] for chat in conversations(rng, (path / "preprocessor_config.json").exists())]
    chats = [chat for chat in chats if chat]
    cases = [{"folder": str(path), "messages": chat, "add_generation_prompt": prompt} for chat in chats for prompt in (False, True)]
    expected = [tokenizer.apply_chat_template(c["messages"], tokenize=False, add_generation_prompt=c["add_generation_prompt"]) for c in cases]
    return compare(path.name, cases, expected)


parser = argparse.ArgumentParser()
parser.add_argument("--build", type=Path, required=True)
parser.add_argument("--templates", type=Path, nargs="*", default=sorted((DATA / "chat_templates").glob("*.jinja")))
args = parser.parse_args()
results = [fragments()] + [template_file(t) for t in args.templates] + [folder(p.parent) for p in sorted(DATA.glob("toy-*/tokenizer_config.json"))]
sys.exit(0 if all(results) else 1)
