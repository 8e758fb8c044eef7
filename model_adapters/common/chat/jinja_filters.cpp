#include "common/chat/jinja_renderer.hpp"

#include <algorithm>

#include "common/chat/jinja_text.hpp"

namespace slim::model::jinja {

Value Renderer::length(const Value& v) {
  if (v.is(Kind::kDict)) return Value::integer(static_cast<int64_t>(v.entries().size()));
  return Value::integer(static_cast<int64_t>(iterate(v).size()));
}

Value Renderer::filter(const std::string& name, const Value& v, const Arguments& args) {
  if (failed()) return {};
  if (name == "length" || name == "count") return length(v);
  if (name == "trim") return text(stripped(printed(v), text_argument(args, 0, "chars"), true, true));
  if (name == "string" || name == "safe") return text(printed(v));
  if (name == "tojson") return to_json(v, args);
  if (name == "items" && v.is(Kind::kUndefined)) return Value::list({});
  if (name == "items" && v.is(Kind::kDict)) return entries(v, "items");
  if (name == "default" || name == "d")
    return v.is(Kind::kUndefined) || (args.get(1, "boolean").truth() && !v.truth())
               ? args.get(0, "default_value")
               : v;
  if (name == "replace") return replace(printed(v), args);
  if (name == "upper" || name == "lower") return cased(printed(v), name == "upper");
  if (name == "join") return joined(iterate(v), text_argument(args, 0, "d").value_or(""));
  if (name == "list") return Value::list(iterate(v));
  if (name == "first") return item(Value::list(iterate(v)), Value::integer(0));
  if (name == "last") return item(Value::list(iterate(v)), Value::integer(-1));
  if (name == "select" || name == "reject" || name == "selectattr" || name == "rejectattr")
    return selected(name, v, args);
  return fail(Code::kUnsupported, "filter '" + name + "' is not supported");
}

Value Renderer::selected(const std::string& name, const Value& v, const Arguments& args) {
  bool attribute_of = name.ends_with("attr"), keep = name.starts_with("select");
  size_t used = attribute_of ? 1 : 0;
  std::optional<std::string> key = attribute_of ? text_argument(args, 0) : std::nullopt;
  if (attribute_of && !key) return fail(Code::kCorrupt, name + " takes the name of an attribute");
  std::optional<std::string> condition = text_argument(args, used);
  Arguments rest;
  for (size_t i = used + 1; i < args.positional.size(); ++i) rest.positional.push_back(args.positional[i]);
  List items = iterate(v);
  std::erase_if(items, [&](const Value& i) {
    Value subject = key ? attribute(i, *key) : i;
    return (condition ? test(*condition, subject, rest) : subject.truth()) != keep;
  });
  return Value::list(std::move(items));
}

Value Renderer::to_json(const Value& v, const Arguments& args) {
  if (!args.positional.empty() || !args.keywords.empty())
    return fail(Code::kUnsupported, "tojson with arguments is not supported");
  std::string out;
  write_json(v, out);
  return text(std::move(out));
}

void Renderer::write_json(const Value& v, std::string& out) {
  Deeper deeper(depth_);
  if (depth_ > kMaxDepth || out.size() > kMaxText) fail(Code::kUnsupported, "a value too large for tojson");
  if (failed()) return;
  const char* comma = "";
  switch (v.kind()) {
    case Kind::kNone:
      out += "null";
      break;
    case Kind::kBool:
      out += v.truth() ? "true" : "false";
      break;
    case Kind::kInt:
      out += std::to_string(v.number());
      break;
    case Kind::kString:
      append_json_string(v.text(), out);
      break;
    case Kind::kList:
      out += '[';
      for (const Value& i : v.items()) out += comma, write_json(i, out), comma = ", ";
      out += ']';
      break;
    case Kind::kDict:
      out += '{';
      for (const auto& [key, value] : v.entries()) {
        out += comma, append_json_string(key, out), out += ": ", write_json(value, out);
        comma = ", ";
      }
      out += '}';
      break;
    default:
      wrong("expected a value for tojson", v);
  }
}

bool Renderer::test(const std::string& name, const Value& v, const Arguments& args) {
  static const std::map<std::string_view, bool (*)(const Value&)> kTests = {
      {"defined", [](const Value& x) { return !x.is(Kind::kUndefined); }},
      {"undefined", [](const Value& x) { return x.is(Kind::kUndefined); }},
      {"none", [](const Value& x) { return x.is(Kind::kNone); }},
      {"string", [](const Value& x) { return x.is(Kind::kString); }},
      {"mapping", [](const Value& x) { return x.is(Kind::kDict); }},
      {"boolean", [](const Value& x) { return x.is(Kind::kBool); }},
      {"integer", [](const Value& x) { return x.is(Kind::kInt); }},
      {"number", [](const Value& x) { return is_number(x); }},
      {"true", [](const Value& x) { return x.is(Kind::kBool) && x.truth(); }},
      {"false", [](const Value& x) { return x.is(Kind::kBool) && !x.truth(); }},
      {"iterable", &has_items},
      {"sequence", &has_items},
  };
  if (failed()) return false;
  if (auto it = kTests.find(name); it != kTests.end()) return it->second(v);
  if (name == "in") return contains(args.get(0), v);
  if (name == "eq" || name == "equalto" || name == "==") return v == args.get(0);
  if (name == "ne" || name == "!=") return !(v == args.get(0));
  return fail(Code::kUnsupported, "test '" + name + "' is not supported").truth();
}

bool Renderer::has_items(const Value& v) {
  return v.is(Kind::kUndefined) || v.is(Kind::kString) || v.is(Kind::kList) || v.is(Kind::kDict);
}

}  // namespace slim::model::jinja
