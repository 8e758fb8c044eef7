#include "common/chat/jinja_renderer.hpp"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <ctime>

#include "common/chat/jinja_text.hpp"

namespace slim::model::jinja {

Arguments Renderer::arguments(const Node& node) {
  Arguments out;
  size_t positional = node.a.size() - node.names.size();
  for (size_t i = 1; i < node.a.size(); ++i) {
    Value v = evaluate(node.a[i]);
    if (i < positional)
      out.positional.push_back(std::move(v));
    else
      out.keywords.emplace_back(node.names[i - positional], std::move(v));
  }
  line_ = node.line;
  return out;
}

Value Renderer::call(const Node& node) {
  const Node& callee = *node.a[0];
  if (callee.kind == NodeKind::kAttribute) {
    Value object = evaluate(callee.a[0]);
    return method(object, callee.text, arguments(node));
  }
  if (callee.kind != NodeKind::kName)
    return fail(Code::kUnsupported, "a call of an expression is not supported");
  Value value = lookup(callee.text);
  Arguments args = arguments(node);
  if (failed()) return {};
  if (value.is(Kind::kMacro)) return call_macro(*value.node(), args);
  if (callee.text == "namespace") return name_space(args);
  if (callee.text == "dict") return Value::dict(args.keywords);
  if (callee.text == "range") return range(args);
  if (callee.text == "raise_exception") return fail(Code::kInvalidArgument, printed(args.get(0, "message")));
  if (callee.text == "strftime_now") return now(args);
  return fail(Code::kUnsupported, "function '" + callee.text + "' is not supported");
}

/// The local time, as transformers gives it to templates; that of SOURCE_DATE_EPOCH where it is set, so that runs can be repeated.
Value Renderer::now(const Arguments& args) {
  const std::optional<std::string> format = text_argument(args, 0, "format");
  if (!format || format->size() > 256) return fail(Code::kCorrupt, "strftime_now() takes a format");
  if (format->empty()) return text("");
  std::time_t time = std::time(nullptr);
  if (const char* epoch = std::getenv("SOURCE_DATE_EPOCH")) time = std::strtoll(epoch, nullptr, 10);
  std::tm local{};
  localtime_r(&time, &local);
  std::string out(4096, '\0');
  out.resize(std::strftime(out.data(), out.size(), format->c_str(), &local));
  return text(std::move(out));
}

Value Renderer::name_space(const Arguments& args) {
  for (const auto& [key, value] : args.keywords)
    if (value.nesting() > Value::kMaxNesting) return wrong("a namespace cannot hold this", value);
  return Value::name_space(args.keywords);
}

Value Renderer::range(const Arguments& args) {
  bool both = args.positional.size() > 1;
  Value first = both ? args.get(0) : Value::integer(0), last = args.get(both ? 1 : 0);
  Value step = args.positional.size() > 2 ? args.get(2) : Value::integer(1);
  if (!is_number(first) || !is_number(last) || !is_number(step) || step.number() == 0)
    return fail(Code::kCorrupt, "range() of other than numbers");
  List out;
  int64_t i = first.number();
  while (step.number() > 0 ? i < last.number() : i > last.number()) {
    out.push_back(Value::integer(i));
    if (__builtin_add_overflow(i, step.number(), &i)) break;
    if (out.size() > 100000) return fail(Code::kUnsupported, "range() over 100000 numbers");
  }
  return Value::list(std::move(out));
}

Value Renderer::call_macro(const Node& macro, const Arguments& args) {
  if (args.positional.size() > macro.names.size())
    return fail(Code::kCorrupt, "too many arguments of " + macro.text);
  for (const auto& [key, value] : args.keywords)
    if (std::find(macro.names.begin(), macro.names.end(), key) == macro.names.end())
      return fail(Code::kCorrupt, "macro " + macro.text + " has no parameter '" + key + "'");
  if (++calls_ > kMaxCalls) return fail(Code::kUnsupported, "macro calls nested deeper than 64");
  std::vector<Scope> caller;
  caller.swap(scopes_);
  scopes_.push_back(std::move(caller.front()));
  scopes_.emplace_back();
  for (size_t i = 0; i < macro.names.size(); ++i) {
    Value v = args.get(i, macro.names[i]);
    scopes_.back()[macro.names[i]] = v.is(Kind::kUndefined) ? evaluate(macro.a[i]) : v;
  }
  std::string out;
  execute(macro.body, out);
  caller.front() = std::move(scopes_.front());
  scopes_.swap(caller);
  --calls_;
  return text(std::move(out));
}

Value Renderer::method(const Value& object, const std::string& name, const Arguments& args) {
  if (failed()) return {};
  if (object.is(Kind::kString)) return string_method(object.text(), name, args);
  if (object.is(Kind::kDict)) {
    if (name == "items" || name == "keys" || name == "values") return entries(object, name);
    if (name == "get") {
      Value key = args.get(0, "key");
      const Value* found = key.is(Kind::kString) ? object.find(key.text()) : nullptr;
      Value otherwise = args.get(1, "default");
      return found != nullptr ? *found : otherwise.is(Kind::kUndefined) ? Value::none() : otherwise;
    }
  }
  return fail(Code::kUnsupported, "method '" + name + "' of " + name_of(object.kind()) + " is not supported");
}

Value Renderer::entries(const Value& dict, const std::string& what) {
  List out;
  for (const auto& [key, value] : dict.entries()) {
    if (what == "items")
      out.push_back(Value::list({Value::string(key), value}));
    else
      out.push_back(what == "keys" ? Value::string(key) : value);
  }
  return Value::list(std::move(out));
}

std::optional<std::string> Renderer::text_argument(const Arguments& args, size_t i, std::string_view name) {
  Value v = args.get(i, name);
  if (v.is(Kind::kString)) return v.text();
  if (!v.is(Kind::kUndefined) && !v.is(Kind::kNone)) wrong("expected a string as argument", v);
  return std::nullopt;
}

Value Renderer::string_method(const std::string& s, const std::string& name, const Arguments& args) {
  if (name == "strip" || name == "lstrip" || name == "rstrip")
    return text(stripped(s, text_argument(args, 0), name != "rstrip", name != "lstrip"));
  if (name == "startswith" || name == "endswith") {
    std::optional<std::string> part = text_argument(args, 0);
    if (!part) return fail(Code::kUnsupported, name + "() takes one string");
    return Value::boolean(name == "startswith" ? s.starts_with(*part) : s.ends_with(*part));
  }
  if (name == "split") return split(s, args);
  if (name == "replace") return replace(s, args);
  if (name == "upper" || name == "lower") return cased(s, name == "upper");
  if (name == "capitalize") return capitalized(s);
  if (name == "join") return joined(iterate(args.get(0)), s);
  return fail(Code::kUnsupported, "method '" + name + "' of a string is not supported");
}

Value Renderer::split(const std::string& s, const Arguments& args) {
  std::optional<std::string> separator = text_argument(args, 0, "sep");
  Value limit = args.get(1, "maxsplit");
  if (separator && separator->empty()) return fail(Code::kCorrupt, "split() by an empty separator");
  List out;
  for (std::string& part : split_text(s, separator, is_number(limit) ? limit.number() : -1))
    out.push_back(Value::string(std::move(part)));
  spend(static_cast<int64_t>(out.size() + s.size() / 256));
  return Value::list(std::move(out));
}

Value Renderer::replace(const std::string& s, const Arguments& args) {
  std::optional<std::string> from = text_argument(args, 0, "old"), to = text_argument(args, 1, "new");
  if (!from || !to || from->empty() || args.positional.size() > 2)
    return fail(Code::kUnsupported, "replace() takes two strings, the first not empty");
  std::string out;
  size_t at = 0;
  for (size_t next; (next = find_text(s, *from, at)) != std::string::npos && out.size() <= kMaxText;
       at = next + from->size())
    out.append(s, at, next - at).append(*to);
  return text(out.append(s, at));
}

Value Renderer::cased(std::string s, bool upper) {
  for (char& c : s) {
    if (static_cast<unsigned char>(c) >= 0x80)
      return fail(Code::kUnsupported, "upper and lower case of other than ASCII is not supported");
    c = static_cast<char>(upper ? std::toupper(c) : std::tolower(c));
  }
  return text(std::move(s));
}

Value Renderer::capitalized(std::string s) {
  Value lower = cased(std::move(s), false);
  if (failed() || lower.text().empty()) return lower;
  std::string out = lower.text();
  out[0] = static_cast<char>(std::toupper(out[0]));
  return text(std::move(out));
}

Value Renderer::joined(const List& items, const std::string& separator) {
  std::string out;
  for (size_t i = 0; i < items.size() && out.size() <= kMaxText; ++i) {
    if (i > 0) out += separator;
    out += printed(items[i]);
  }
  return text(std::move(out));
}

}  // namespace slim::model::jinja
