#include "common/chat/jinja_renderer.hpp"

#include <algorithm>

#include "common/chat/jinja_text.hpp"

namespace slim::model::jinja {

Value Renderer::length(const Value& v) {
  if (v.is(Kind::kDict)) return Value::integer(static_cast<int64_t>(v.entries().size()));
  if (v.is(Kind::kString)) return Value::integer(count_characters(v.text()));
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
  if (name == "capitalize") return capitalized(printed(v));
  if (name == "map") return mapped(v, args);
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

/// Of each item an attribute (attribute=...), or what another filter makes of it.
Value Renderer::mapped(const Value& v, const Arguments& args) {
  const std::optional<std::string> key = text_argument(args, args.positional.size(), "attribute");
  const std::optional<std::string> name = text_argument(args, 0);
  if (key.has_value() == name.has_value())
    return fail(Code::kUnsupported, "map() takes the name of a filter, or attribute=");
  Arguments rest{.positional = {}, .keywords = key ? Dict{} : args.keywords};
  for (size_t i = 1; i < args.positional.size(); ++i) rest.positional.push_back(args.positional[i]);
  const Value otherwise = args.get(args.positional.size(), "default");
  List items = iterate(v);
  for (Value& item : items) {
    item = key ? attribute(item, *key) : filter(*name, item, rest);
    if (key && item.is(Kind::kUndefined)) item = otherwise;
  }
  spend(static_cast<int64_t>(items.size()));
  return Value::list(std::move(items));
}

Value Renderer::to_json(const Value& v, const Arguments& args) {
  JsonStyle style;
  if (!args.positional.empty())
    return fail(Code::kUnsupported, "tojson with arguments without name is not supported");
  for (const auto& [key, value] : args.keywords) {
    if (key == "indent" && (value.is(Kind::kInt) || value.is(Kind::kNone))) {
      style.indent = value.is(Kind::kInt) ? std::clamp<int64_t>(value.number(), 0, 64) : -1;
    } else if (key == "separators" && value.is(Kind::kList) && value.items().size() == 2) {
      style.comma = printed(value.items()[0]);
      style.colon = printed(value.items()[1]);
    } else if (key == "sort_keys") {
      style.sort = value.truth();
    } else if (key != "ensure_ascii" || value.truth()) {
      return fail(Code::kUnsupported, "tojson with " + key + " is not supported so");
    }
  }
  if (style.comma.empty()) style.comma = style.indent < 0 ? ", " : ",";
  std::string out;
  write_json(v, style, 0, out);
  return text(std::move(out));
}

/// The items of a list or an object, each on a line of its own where the style indents.
template <class Items, class Write>
void Renderer::write_json_items(const Items& items, const JsonStyle& style, int64_t level,
                                std::string_view brackets, std::string& out, const Write& write) {
  const auto line = [&](int64_t depth) {
    if (style.indent >= 0 && !items.empty())
      out += '\n' + std::string(static_cast<size_t>(style.indent * depth), ' ');
  };
  out += brackets[0];
  bool first = true;
  for (const auto& item : items) {
    if (failed()) return;
    if (!first) out += style.comma;
    first = false;
    line(level + 1);
    write(item);
  }
  line(level);
  out += brackets[1];
}

void Renderer::write_json(const Value& v, const JsonStyle& style, int64_t level, std::string& out) {
  Deeper deeper(depth_);
  if (depth_ > kMaxDepth || out.size() > kMaxText) fail(Code::kUnsupported, "a value too large for tojson");
  if (failed()) return;
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
    case Kind::kDecimal:
      out += v.text();
      break;
    case Kind::kString:
      append_json_string(v.text(), out);
      break;
    case Kind::kList:
      write_json_items(v.items(), style, level, "[]", out,
                       [&](const Value& item) { write_json(item, style, level + 1, out); });
      break;
    case Kind::kDict: {
      Dict entries = v.entries();
      if (style.sort)
        std::stable_sort(entries.begin(), entries.end(),
                         [](const auto& a, const auto& b) { return a.first < b.first; });
      write_json_items(entries, style, level, "{}", out, [&](const auto& entry) {
        append_json_string(entry.first, out);
        out += style.colon;
        write_json(entry.second, style, level + 1, out);
      });
      break;
    }
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
      {"number", [](const Value& x) { return is_number(x) || x.is(Kind::kDecimal); }},
      {"float", [](const Value& x) { return x.is(Kind::kDecimal); }},
      {"true", [](const Value& x) { return x.is(Kind::kBool) && x.truth(); }},
      {"false", [](const Value& x) { return x.is(Kind::kBool) && !x.truth(); }},
      {"iterable", &has_items},
      {"sequence", &has_items},
  };
  if (failed()) return false;
  if (auto it = kTests.find(name); it != kTests.end()) return it->second(v);
  if (name == "in") return contains(args.get(0), v);
  if (name == "eq" || name == "equalto" || name == "==") return equal(v, args.get(0));
  if (name == "ne" || name == "!=") return !equal(v, args.get(0));
  return fail(Code::kUnsupported, "test '" + name + "' is not supported").truth();
}

bool Renderer::has_items(const Value& v) {
  return v.is(Kind::kUndefined) || v.is(Kind::kString) || v.is(Kind::kList) || v.is(Kind::kDict);
}

}  // namespace slim::model::jinja
