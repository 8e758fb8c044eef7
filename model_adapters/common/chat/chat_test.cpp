#include "common/chat/chat.hpp"

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <random>

#include "common/chat/jinja.hpp"

using namespace slim;
using namespace slim::model;

namespace {

using Kind = ContentPart::Kind;

ContentPart text(const char* v) { return {Kind::kText, v, {}, {}}; }
Message message(const char* role, std::vector<ContentPart> content) { return {role, std::move(content)}; }

Result<std::string> run(const std::string& source) {
  auto parsed = jinja::Template::parse(source);
  if (!parsed.ok()) return parsed.status();
  return parsed->render(
      {{"t", jinja::Value::boolean(true)}, {"l", jinja::Value::list({jinja::Value::string("x")})}});
}

/// An empty folder of this test's own.
std::string folder(const char* name) {
  auto path = std::filesystem::temp_directory_path() / (std::string("slim_chat_test_") + name);
  std::filesystem::remove_all(path);
  std::filesystem::create_directories(path);
  return path.string();
}

void write(const std::string& path, const char* content) { std::ofstream(path) << content; }

}  // namespace

TEST_CASE("chat/ a template that is not valid UTF-8 is refused") {
  for (const char* text : {"{{ '\xe0'|trim }}", "\xff"}) {
    const auto chat = ChatTemplate::from_source(text, "t.jinja");
    REQUIRE(!chat.ok());
    CHECK(chat.status().message() == "t.jinja: not valid UTF-8");
  }
}

TEST_CASE("chat/ Qwen's format with an image") {
  auto chat = ChatTemplate::from_folder("tests/data/toy-qwen3vl");
  REQUIRE_MESSAGE(chat.ok(), chat.status().message());
  std::vector<Message> messages = {
      message("user", {{Kind::kImage, "", {"a.png"}, {}}, text("What is this?")})};
  auto prompt = chat->render(messages, true);
  REQUIRE_MESSAGE(prompt.ok(), prompt.status().message());
  CHECK(*prompt ==
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is "
        "this?<|im_end|>\n<|im_start|>assistant\n");
}

TEST_CASE("chat/ texts of one message are one text") {
  auto chat =
      ChatTemplate::from_source("{% for m in messages %}{{ m.role + ':' + m.content }}{% endfor %}", "t");
  REQUIRE(chat.ok());
  std::vector<Message> messages = {message("user", {text("a"), text("b\xFF")})};
  CHECK(*chat->render(messages, false) == "user:ab\xEF\xBF\xBD");
}

TEST_CASE("chat/ the first file with a template counts, and special tokens are variables") {
  std::string path = folder("order");
  write(path + "/tokenizer_config.json",
        R"({"chat_template": "config", "bos_token": "<s>", "eos_token": {"content": "</s>"}})");
  CHECK(*ChatTemplate::from_folder(path)->render({}, false) == "config");
  write(path + "/chat_template.json", R"({"chat_template": "json {{ bos_token }}"})");
  CHECK(*ChatTemplate::from_folder(path)->render({}, false) == "json <s>");
  write(path + "/chat_template.jinja", "jinja {{ eos_token }}");
  CHECK(*ChatTemplate::from_folder(path)->render({}, false) == "jinja </s>");
  std::filesystem::remove_all(path);
}

TEST_CASE("chat/ errors name the file") {
  std::string path = folder("errors");
  auto none = ChatTemplate::from_folder(path);
  REQUIRE(none.ok());
  CHECK_FALSE(none->exists());
  CHECK(none->render({}, false).status().code() == Code::kNotFound);
  for (const char* content : {"{", "[]", R"({"chat_template": 1})", R"({"chat_template": "{{ x"})",
                              R"({"chat_template": [{"name": "x"}]})"}) {
    write(path + "/tokenizer_config.json", content);
    auto chat = ChatTemplate::from_folder(path);
    REQUIRE_FALSE(chat.ok());
    CHECK(chat.status().message().find("tokenizer_config.json") != std::string::npos);
  }
  write(path + "/tokenizer_config.json", R"({"chat_template": "\n{{ raise_exception('only users') }}"})");
  auto raised = ChatTemplate::from_folder(path)->render({}, false);
  REQUIRE_FALSE(raised.ok());
  CHECK(raised.status().message().find("line 2: only users") != std::string::npos);
  std::filesystem::remove_all(path);
}

TEST_CASE("jinja/ blocks take their line's indentation and end along") {
  CHECK(*run("a\n  {% if t %}\n  b\n  {% endif %}\nc\n") == "a\n  b\nc");
  CHECK(*run("a {%- if t -%} b {% endif %}") == "ab ");
}

TEST_CASE("jinja/ what is not known is an error with its line") {
  for (const char* source : {"\n{% include 'x' %}", "\n{{ l|nope }}", "\n{{ l is nope }}", "\n{{ nope() }}",
                             "\n{{ l.nope() }}", "\n{{ 1 < 2 < 3 }}", "\n{{ l }}"}) {
    auto out = run(source);
    REQUIRE_FALSE(out.ok());
    CHECK(out.status().code() == Code::kUnsupported);
    CHECK(out.status().message().starts_with("line 2: "));
  }
}

TEST_CASE("jinja/ templates without end end") {
  const std::string kLong =
      "{% set n = namespace(s='aaaaaaaaaaaaaaaa', l=[]) %}{% for i in range(22) %}{% set n.s = n.s ~ n.s "
      "%}{% endfor %}";
  auto repeat = [](const char* part, int n) {
    std::string out;
    while (n-- > 0) out += part;
    return out;
  };
  for (
      const std::string& source :
      {std::string("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"),
       std::string(
           "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}"),
       std::string(
           "{% set n = namespace(v=[]) %}{% for i in range(99999) %}{% set n.v = [n.v] %}{% endfor %}"),
       std::string("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"), "{{ " + repeat("(", 50000),
       "{{ " + repeat("[", 50000), "{{ 1" + repeat("+1", 50000) + " }}",
       "{{ l" + repeat("|list", 50000) + " }}", repeat("{% if t %}", 50000),
       "{% if t %}" + repeat("{% elif t %}", 50000) + "{% endif %}", "{{ " + repeat("not ", 50000) + "t }}",
       // What the size of the template and the number of its nodes do not show: the work inside of one operation.
       std::string("{% set n = namespace(a=[], b=[]) %}{% for i in range(60) %}{% set n.a = [n.a, n.a] %}"
                   "{% set n.b = [n.b, n.b] %}{% endfor %}{{ n.a == n.b }}"),
       kLong + "{% set y = n.s ~ '' %}{% for i in range(99999) %}{% set x = y == n.s %}{% endfor %}",
       kLong + "{% for i in range(35) %}{% set n.l = n.l + [n.s ~ ''] %}{% endfor %}",
       kLong + "{{ n.s|list|length }}"})
    CHECK_FALSE(run(source).ok());
}

TEST_CASE("jinja/ every cut or changed template gives a text or an error") {
  const std::string source =
      "{% set ns = namespace(a=1) %}{% macro f(x, y=2) %}{{ x ~ y|string|trim }}{% endmacro %}{# c #}{% for "
      "a, b in [(1, 'z')] %}"
      "{{- f(a) if b is string else l[::-1][0]|tojson }}{% set ns.a = ns.a + 1 %}{% elif %}{% endfor %}{{ "
      "{'k': l}.k|length }}";
  std::mt19937 rng(3);
  for (int i = 0; i < 3000; ++i) {
    std::string changed = source.substr(0, rng() % 3 == 0 ? rng() % source.size() : source.size());
    for (int k = 0; k < 2 && !changed.empty(); ++k)
      changed[rng() % changed.size()] = "{}%()[]|.,'\"-+#: a1\n\\"[rng() % 22];
    (void)run(changed);
  }
}

TEST_CASE("jinja/ long texts are searched and split in time linear in them") {
  const std::string doubled =
      "{% set n = namespace(s='a ') %}{% for i in range(20) %}{% set n.s = n.s ~ n.s %}{% endfor %}";
  CHECK(*run(doubled + "{{ n.s.split()|length }} {{ n.s|length }} {{ (n.s ~ 'b') in n.s }}") ==
        "1048576 2097152 False");
  CHECK(*run("{{ ' a b  c '.split()|join('.') }} {{ ' a b  c '.split(none, 1)|join('.') }}") ==
        "a.b.c a.b  c ");
  CHECK(*run("{{ 'xyaxy'.strip('yx') }}{{ ''.split()|length }}") == "a0");
}

TEST_CASE("jinja/ numbers at the end of their range") {
  CHECK(*run("{% set a = 999999999999999999 * 9 %}{{ range(a, a + 1, 999999999999999999)|length }}") == "1");
  CHECK_FALSE(run("{% set a = 0 - 999999999999999999 * 9 - 223372036854775817 %}{{ -a }}").ok());
}

TEST_CASE("chat/ functions, calls and thoughts go into the template as they stand in the data") {
  const auto chat = ChatTemplate::from_source(
      "{{ tools|tojson }}{% for m in messages %}|{{ m.role }}:{{ m.content }}{{ m.reasoning_content }}"
      "{% for c in m.tool_calls or [] %}{{ c.arguments|tojson }}{% endfor %}{% endfor %}",
      "t");
  REQUIRE(chat.ok());
  Message call{"assistant", {}, "hm", R"([{"name": "f", "arguments": {"z": 1.50, "a": [true, null, "x"]}}])"};
  CHECK(*chat->render(std::vector<Message>{call}, false, R"([{"b": 1, "a": "\u00e9"}])") ==
        "[{\"b\": 1, \"a\": \"\xC3\xA9\"}]|assistant:hm{\"z\": 1.50, \"a\": [true, null, \"x\"]}");
  CHECK(*chat->render(std::vector<Message>{message("user", {text("u")})}, false) == "null|user:u");
}
