#include "common/chat/jinja_renderer.hpp"

#include <algorithm>

#include "common/chat/jinja_text.hpp"

namespace slim::model::jinja {

Value Renderer::evaluate(const Node& node) {
  Deeper deeper(depth_);
  if (!enter(node)) return {};
  switch (node.kind) {
    case NodeKind::kConstant:
      return constant(node);
    case NodeKind::kName:
      return lookup(node.text);
    case NodeKind::kList:
      return list(node);
    case NodeKind::kDict:
      return dict(node);
    case NodeKind::kAttribute:
      return attribute(evaluate(node.a[0]), node.text);
    case NodeKind::kItem:
      return item(evaluate(node.a[0]), evaluate(node.a[1]));
    case NodeKind::kSlice:
      return slice(node);
    case NodeKind::kCall:
      return call(node);
    case NodeKind::kFilter:
      return filter(node.text, evaluate(node.a[0]), arguments(node));
    case NodeKind::kTest:
      return Value::boolean(test(node.text, evaluate(node.a[0]), arguments(node)));
    case NodeKind::kUnary:
      return unary(node.text, evaluate(node.a[0]));
    case NodeKind::kBinary:
      return binary(node);
    case NodeKind::kCondition:
      return evaluate(node.a[1]).truth() ? evaluate(node.a[0]) : evaluate(node.a[2]);
    default:
      return fail(Code::kInternal, "no expression");
  }
}

Value Renderer::constant(const Node& node) {
  if (node.text == "string") return Value::string(node.names[0]);
  if (node.text == "int") return Value::integer(std::stoll(node.names[0]));
  return node.text == "none" ? Value::none() : Value::boolean(node.text == "true");
}

Value Renderer::list(const Node& node) {
  List out;
  for (const NodePtr& child : node.a) out.push_back(evaluate(child));
  return Value::list(std::move(out));
}

Value Renderer::dict(const Node& node) {
  Dict out;
  for (size_t i = 0; i < node.a.size(); i += 2) {
    Value key = evaluate(node.a[i]);
    if (!key.is(Kind::kString)) return wrong("expected a string as key", key);
    std::erase_if(out, [&](const auto& entry) { return entry.first == key.text(); });
    out.emplace_back(key.text(), evaluate(node.a[i + 1]));
  }
  return Value::dict(std::move(out));
}

Value Renderer::attribute(const Value& v, const std::string& name) {
  if (v.is(Kind::kUndefined)) return fail(Code::kCorrupt, "'." + name + "' of an undefined value");
  const Value* found = v.find(name);
  return found != nullptr ? *found : Value();
}

Value Renderer::item(const Value& v, const Value& key) {
  if (v.is(Kind::kUndefined)) return fail(Code::kCorrupt, "an item of an undefined value");
  if (key.is(Kind::kString)) return attribute(v, key.text());
  if (!key.is(Kind::kInt) || (!v.is(Kind::kList) && !v.is(Kind::kString))) return {};
  List items = iterate(v);
  auto size = static_cast<int64_t>(items.size());
  int64_t i = key.number() < 0 ? key.number() + size : key.number();
  return i >= 0 && i < size ? items[static_cast<size_t>(i)] : Value();
}

Value Renderer::slice(const Node& node) {
  Value v = evaluate(node.a[0]);
  if (!v.is(Kind::kList) && !v.is(Kind::kString)) return wrong("expected a list or string to slice", v);
  std::optional<int64_t> bounds[3];
  for (size_t i = 0; i < 3; ++i) {
    Value bound = evaluate(node.a[i + 1]);
    if (bound.is(Kind::kInt))
      bounds[i] = bound.number();
    else if (node.a[i + 1] != nullptr && !bound.is(Kind::kNone))
      return wrong("expected a number as bound of a slice", bound);
  }
  List items = iterate(v), out;
  auto size = static_cast<int64_t>(items.size());
  int64_t step = bounds[2].value_or(1), low = step > 0 ? 0 : -1, high = step > 0 ? size : size - 1;
  if (step == 0) return fail(Code::kCorrupt, "a slice of step 0");
  auto place = [&](const std::optional<int64_t>& bound, int64_t otherwise) {
    return bound ? std::clamp(*bound < 0 ? *bound + size : *bound, low, high) : otherwise;
  };
  int64_t begin = place(bounds[0], step > 0 ? low : high), end = place(bounds[1], step > 0 ? high : low);
  step = std::clamp(step, -size - 1, size + 1);
  for (int64_t i = begin; step > 0 ? i < end : i > end; i += step)
    out.push_back(items[static_cast<size_t>(i)]);
  return v.is(Kind::kList) ? Value::list(std::move(out)) : joined(out, "");
}

Value Renderer::unary(const std::string& op, const Value& v) {
  if (op == "not") return Value::boolean(!v.truth());
  if (!is_number(v)) return wrong("expected a number behind '" + op + "'", v);
  return op == "-" ? of_numbers("-", 0, v.number()) : Value::integer(v.number());
}

Value Renderer::binary(const Node& node) {
  const std::string& op = node.text;
  Value a = evaluate(node.a[0]);
  if (op == "or" || op == "and") return a.truth() == (op == "or") ? a : evaluate(node.a[1]);
  Value b = evaluate(node.a[1]);
  line_ = node.line;
  if (failed()) return {};
  if (op == "==") return Value::boolean(equal(a, b));
  if (op == "!=") return Value::boolean(!equal(a, b));
  if (op == "in") return Value::boolean(contains(b, a));
  if (op == "not in") return Value::boolean(!contains(b, a));
  if (op == "~") return text(printed(a) + printed(b));
  if (a.is(Kind::kString) && b.is(Kind::kString)) return of_strings(op, a.text(), b.text());
  if (is_number(a) && is_number(b)) return of_numbers(op, a.number(), b.number());
  if (op == "+" && a.is(Kind::kList) && b.is(Kind::kList)) {
    List out = a.items();
    out.insert(out.end(), b.items().begin(), b.items().end());
    spend(static_cast<int64_t>(out.size()));
    return Value::list(std::move(out));
  }
  return fail(Code::kCorrupt, "'" + op + "' of " + name_of(a.kind()) + " and " + name_of(b.kind()));
}

Value Renderer::of_strings(const std::string& op, const std::string& a, const std::string& b) {
  if (op == "+") return text(a + b);
  if (op == "<") return Value::boolean(a < b);
  if (op == "<=") return Value::boolean(a <= b);
  if (op == ">") return Value::boolean(a > b);
  if (op == ">=") return Value::boolean(a >= b);
  return fail(Code::kUnsupported, "'" + op + "' of strings is not supported");
}

Value Renderer::of_numbers(const std::string& op, int64_t a, int64_t b) {
  if (op == "<") return Value::boolean(a < b);
  if (op == "<=") return Value::boolean(a <= b);
  if (op == ">") return Value::boolean(a > b);
  if (op == ">=") return Value::boolean(a >= b);
  int64_t out = 0;
  if (op == "+"   ? __builtin_add_overflow(a, b, &out)
      : op == "-" ? __builtin_sub_overflow(a, b, &out)
                  : op == "*" && __builtin_mul_overflow(a, b, &out))
    return fail(Code::kUnsupported, "a number too large");
  if (op == "+" || op == "-" || op == "*") return Value::integer(out);
  if (b == 0) return fail(Code::kCorrupt, "division by zero");
  if (b == -1) return op == "%" ? Value::integer(0) : of_numbers("-", 0, a);
  int64_t quotient = a / b, rest = a % b;
  if (rest != 0 && (rest < 0) != (b < 0)) --quotient, rest += b;  // both round down in Python
  return Value::integer(op == "//" ? quotient : rest);
}

bool Renderer::contains(const Value& container, const Value& v) {
  if (container.is(Kind::kString)) {
    if (!v.is(Kind::kString)) return wrong("expected a string before 'in'", v).truth();
    return spend(static_cast<int64_t>(container.text().size() / 256)) &&
           find_text(container.text(), v.text()) != std::string::npos;
  }
  if (container.is(Kind::kDict)) return v.is(Kind::kString) && container.find(v.text()) != nullptr;
  List items = iterate(container);
  return std::ranges::any_of(items, [&](const Value& item) { return equal(item, v); });
}

std::string Renderer::printed(const Value& v) {
  switch (v.kind()) {
    case Kind::kUndefined:
      return "";
    case Kind::kNone:
      return "None";
    case Kind::kBool:
      return v.truth() ? "True" : "False";
    case Kind::kInt:
      return std::to_string(v.number());
    case Kind::kDecimal:
    case Kind::kString:
      return v.text();
    default:
      fail(Code::kUnsupported, std::string("printing ") + name_of(v.kind()) + " is not supported");
      return "";
  }
}

}  // namespace slim::model::jinja
