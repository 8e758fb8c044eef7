#include "common/jinja.hpp"

#include <algorithm>
#include <functional>
#include <map>
#include <optional>

#include "common/jinja_syntax.hpp"
#include "common/jinja_text.hpp"

namespace slim::model::jinja {

// ---- values -----------------------------------------------------------------------------------------------------------

Value Value::none() {
  Value out;
  out.kind_ = Kind::kNone;
  return out;
}
Value Value::boolean(bool v) {
  Value out;
  out.kind_ = Kind::kBool;
  out.number_ = v ? 1 : 0;
  return out;
}
Value Value::integer(int64_t v) {
  Value out;
  out.kind_ = Kind::kInt;
  out.number_ = v;
  return out;
}
Value Value::string(std::string v) {
  Value out;
  out.kind_ = Kind::kString;
  out.text_ = std::make_shared<const std::string>(std::move(v));
  return out;
}
Value Value::list(List v) {
  Value out;
  out.kind_ = Kind::kList;
  for (const Value& item : v) out.nesting_ = std::max(out.nesting_, item.nesting_ + 1);
  out.list_ = std::make_shared<const List>(std::move(v));
  return out;
}
Value Value::dict(Dict v) {
  Value out;
  out.kind_ = Kind::kDict;
  for (const auto& [key, value] : v) out.nesting_ = std::max(out.nesting_, value.nesting_ + 1);
  out.dict_ = std::make_shared<Dict>(std::move(v));
  return out;
}
Value Value::name_space(Dict v) {
  Value out = dict(std::move(v));
  out.kind_ = Kind::kNamespace;
  out.nesting_ = kMaxNesting + 1;
  return out;
}
Value Value::macro(const Node* node) {
  Value out;
  out.kind_ = Kind::kMacro;
  out.node_ = node;
  return out;
}

bool Value::truth() const {
  switch (kind_) {
    case Kind::kUndefined:
    case Kind::kNone:
      return false;
    case Kind::kBool:
    case Kind::kInt:
      return number_ != 0;
    case Kind::kString:
      return !text_->empty();
    case Kind::kList:
      return !list_->empty();
    case Kind::kDict:
      return !dict_->empty();
    case Kind::kNamespace:
    case Kind::kMacro:
      return true;
  }
  return false;
}

const Value* Value::find(std::string_view key) const {
  if (dict_ == nullptr) return nullptr;
  for (const auto& [name, value] : *dict_)
    if (name == key) return &value;
  return nullptr;
}

void Value::assign(const std::string& key, Value v) const {
  for (auto& [name, value] : *dict_) {
    if (name != key) continue;
    value = std::move(v);
    return;
  }
  dict_->emplace_back(key, std::move(v));
}

bool operator==(const Value& a, const Value& b) {
  using Kind = Value::Kind;
  auto is_number = [](const Value& v) { return v.is(Kind::kBool) || v.is(Kind::kInt); };
  if (is_number(a) && is_number(b)) return a.number() == b.number();
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case Kind::kString:
      return a.text() == b.text();
    case Kind::kList:
      return a.items() == b.items();
    case Kind::kDict:
      return a.entries().size() == b.entries().size() &&
             std::all_of(a.entries().begin(), a.entries().end(), [&](const auto& entry) {
               const Value* other = b.find(entry.first);
               return other != nullptr && *other == entry.second;
             });
    case Kind::kNamespace:
      return &a.entries() == &b.entries();
    case Kind::kMacro:
      return a.node() == b.node();
    default:
      return true;
  }
}

namespace {

using Kind = Value::Kind;
using NodeKind = Node::Kind;

const char* name_of(Kind kind) {
  static constexpr const char* kNames[] = {"an undefined value", "none",        "a boolean",
                                           "a number",           "a string",    "a list",
                                           "a mapping",          "a namespace", "a macro"};
  return kNames[static_cast<size_t>(kind)];
}

/// Arguments of a call, filter or test.
struct Arguments {
  std::vector<Value> positional;
  Dict keywords;

  Value get(size_t i, std::string_view name = {}) const {
    if (i < positional.size()) return positional[i];
    for (const auto& [key, value] : keywords)
      if (key == name) return value;
    return {};
  }
};

/// Runs one template once. The first error is kept in status_; after it everything evaluates to undefined and loops end.
class Renderer {
 public:
  explicit Renderer(const Dict& globals) {
    scopes_.emplace_back();
    for (const auto& [name, value] : globals) scopes_.front()[name] = value;
  }

  Result<std::string> run(const Node& root) {
    std::string out;
    execute(root.body, out);
    SLIM_TRY(status_);
    return out;
  }

 private:
  using Scope = std::map<std::string, Value, std::less<>>;
  using Nodes = std::vector<NodePtr>;
  enum class Flow : uint8_t { kNext, kBreak, kContinue };
  static constexpr int64_t kMaxSteps = 10'000'000;
  static constexpr size_t kMaxText = size_t{64} << 20;
  static constexpr int kMaxDepth = 600;
  static constexpr int kMaxCalls = 64;

  Value fail(Code code, const std::string& what) {
    if (status_.ok()) status_ = Status(code, "line " + std::to_string(line_) + ": " + what);
    return {};
  }
  Value wrong(const std::string& what, const Value& found) {
    return fail(Code::kCorrupt, what + ": found " + name_of(found.kind()));
  }
  bool failed() const { return !status_.ok(); }

  /// Counts a step; false when the template is over its bounds.
  bool enter(const Node& node) {
    line_ = node.line;
    if (++steps_ > kMaxSteps) fail(Code::kUnsupported, "the template takes too many steps");
    if (depth_ > kMaxDepth) fail(Code::kUnsupported, "the template nests too deep");
    return !failed();
  }
  struct Deeper {
    explicit Deeper(int& depth) : depth(depth) { ++depth; }
    ~Deeper() { --depth; }
    int& depth;
  };

  Value text(std::string v) {
    steps_ += static_cast<int64_t>(v.size() / 256);  // copying costs too
    if (v.size() > kMaxText) return fail(Code::kUnsupported, "a text over 64 MiB");
    return Value::string(std::move(v));
  }

  // ---- names

  Value lookup(const std::string& name) const {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope)
      if (auto it = scope->find(name); it != scope->end()) return it->second;
    return {};
  }

  // ---- statements

  Flow execute(const Nodes& nodes, std::string& out) {
    for (const NodePtr& node : nodes) {
      Flow flow = execute(*node, out);
      if (failed()) return Flow::kBreak;
      if (flow != Flow::kNext) return flow;
      if (out.size() > kMaxText) fail(Code::kUnsupported, "a text over 64 MiB");
    }
    return Flow::kNext;
  }

  Flow execute(const Node& node, std::string& out) {
    Deeper deeper(depth_);
    if (!enter(node)) return Flow::kBreak;
    switch (node.kind) {
      case NodeKind::kText:
        out += node.text;
        break;
      case NodeKind::kPrint:
        out += printed(evaluate(node.a[0]));
        break;
      case NodeKind::kGroup:
        return execute(node.body, out);
      case NodeKind::kIf:
        return execute(evaluate(node.a[0]).truth() ? node.body : node.other, out);
      case NodeKind::kFor:
        return loop(node, out);
      case NodeKind::kSet:
        set(node);
        break;
      case NodeKind::kMacro:
        scopes_.back()[node.text] = Value::macro(&node);
        break;
      case NodeKind::kBreak:
        return Flow::kBreak;
      case NodeKind::kContinue:
        return Flow::kContinue;
      default:
        fail(Code::kInternal, "no statement");
    }
    return Flow::kNext;
  }

  void set(const Node& node) {
    Value value;
    if (node.a.empty()) {
      std::string out;
      execute(node.body, out);
      value = text(std::move(out));
    } else {
      value = evaluate(node.a[0]);
    }
    if (failed()) return;
    // Values that grow by one level in each pass of a loop could not be freed without exhausting the stack.
    bool plain = node.names.size() == 1;
    if (value.nesting() > Value::kMaxNesting && !(plain && value.is(Kind::kNamespace))) {
      fail(Code::kUnsupported, "containers nested deeper than 100, or a namespace inside a container");
      return;
    }
    if (plain) {
      scopes_.back()[node.names[0]] = std::move(value);
      return;
    }
    Value target = lookup(node.names[0]);
    if (target.is(Kind::kNamespace)) {
      target.assign(node.names[1], std::move(value));
    } else {
      wrong("only attributes of a namespace can be set", target);
    }
  }

  /// Binds the loop's targets to one item.
  void bind(const Node& node, const Value& item) {
    if (node.names.size() == 1) {
      scopes_.back()[node.names[0]] = item;
      return;
    }
    if (!item.is(Kind::kList) || item.items().size() != node.names.size()) {
      wrong("expected " + std::to_string(node.names.size()) + " parts in each item of the loop", item);
      return;
    }
    for (size_t i = 0; i < node.names.size(); ++i) scopes_.back()[node.names[i]] = item.items()[i];
  }

  Flow loop(const Node& node, std::string& out) {
    List items = iterate(evaluate(node.a[0]));
    if (node.a[1] != nullptr) {
      scopes_.emplace_back();
      std::erase_if(items, [&](const Value& item) { return bind(node, item), !evaluate(node.a[1]).truth(); });
      scopes_.pop_back();
    }
    if (failed()) return Flow::kBreak;
    if (items.empty()) return execute(node.other, out);
    auto count = static_cast<int64_t>(items.size());
    for (int64_t i = 0; i < count && enter(node); ++i) {
      steps_ += 10;  // what it costs to set the loop's variables
      scopes_.emplace_back();
      auto item = [&](int64_t k) { return k >= 0 && k < count ? items[static_cast<size_t>(k)] : Value(); };
      scopes_.back()["loop"] = Value::dict({{"index0", Value::integer(i)},
                                            {"index", Value::integer(i + 1)},
                                            {"revindex0", Value::integer(count - 1 - i)},
                                            {"revindex", Value::integer(count - i)},
                                            {"first", Value::boolean(i == 0)},
                                            {"last", Value::boolean(i + 1 == count)},
                                            {"length", Value::integer(count)},
                                            {"previtem", item(i - 1)},
                                            {"nextitem", item(i + 1)}});
      bind(node, item(i));
      Flow flow = failed() ? Flow::kBreak : execute(node.body, out);
      scopes_.pop_back();
      if (flow == Flow::kBreak) break;
    }
    return Flow::kNext;
  }

  List iterate(const Value& v) {
    List out;
    if (v.is(Kind::kList)) return v.items();
    if (v.is(Kind::kString)) {
      for (std::string& c : characters(v.text())) out.push_back(Value::string(std::move(c)));
    } else if (v.is(Kind::kDict)) {
      for (const auto& [key, value] : v.entries()) out.push_back(Value::string(key));
    } else if (!v.is(Kind::kUndefined)) {
      wrong("expected something to iterate over", v);
    }
    steps_ += static_cast<int64_t>(out.size());
    return out;
  }

  // ---- expressions

  Value evaluate(const NodePtr& node) { return node == nullptr ? Value() : evaluate(*node); }

  Value evaluate(const Node& node) {
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

  static Value constant(const Node& node) {
    if (node.text == "string") return Value::string(node.names[0]);
    if (node.text == "int") return Value::integer(std::stoll(node.names[0]));
    return node.text == "none" ? Value::none() : Value::boolean(node.text == "true");
  }

  Value list(const Node& node) {
    List out;
    for (const NodePtr& child : node.a) out.push_back(evaluate(child));
    return Value::list(std::move(out));
  }

  Value dict(const Node& node) {
    Dict out;
    for (size_t i = 0; i < node.a.size(); i += 2) {
      Value key = evaluate(node.a[i]);
      if (!key.is(Kind::kString)) return wrong("expected a string as key", key);
      std::erase_if(out, [&](const auto& entry) { return entry.first == key.text(); });
      out.emplace_back(key.text(), evaluate(node.a[i + 1]));
    }
    return Value::dict(std::move(out));
  }

  Value attribute(const Value& v, const std::string& name) {
    if (v.is(Kind::kUndefined)) return fail(Code::kCorrupt, "'." + name + "' of an undefined value");
    const Value* found = v.find(name);
    return found != nullptr ? *found : Value();
  }

  Value item(const Value& v, const Value& key) {
    if (v.is(Kind::kUndefined)) return fail(Code::kCorrupt, "an item of an undefined value");
    if (key.is(Kind::kString)) return attribute(v, key.text());
    if (!key.is(Kind::kInt) || (!v.is(Kind::kList) && !v.is(Kind::kString))) return {};
    List items = iterate(v);
    auto size = static_cast<int64_t>(items.size());
    int64_t i = key.number() < 0 ? key.number() + size : key.number();
    return i >= 0 && i < size ? items[static_cast<size_t>(i)] : Value();
  }

  Value slice(const Node& node) {
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

  Value unary(const std::string& op, const Value& v) {
    if (op == "not") return Value::boolean(!v.truth());
    if (!is_number(v)) return wrong("expected a number behind '" + op + "'", v);
    return Value::integer(op == "-" ? -v.number() : v.number());
  }

  static bool is_number(const Value& v) { return v.is(Kind::kInt) || v.is(Kind::kBool); }

  Value binary(const Node& node) {
    const std::string& op = node.text;
    Value a = evaluate(node.a[0]);
    if (op == "or" || op == "and") return a.truth() == (op == "or") ? a : evaluate(node.a[1]);
    Value b = evaluate(node.a[1]);
    line_ = node.line;
    if (failed()) return {};
    if (op == "==") return Value::boolean(a == b);
    if (op == "!=") return Value::boolean(!(a == b));
    if (op == "in") return Value::boolean(contains(b, a));
    if (op == "not in") return Value::boolean(!contains(b, a));
    if (op == "~") return text(printed(a) + printed(b));
    if (a.is(Kind::kString) && b.is(Kind::kString)) return of_strings(op, a.text(), b.text());
    if (is_number(a) && is_number(b)) return of_numbers(op, a.number(), b.number());
    if (op == "+" && a.is(Kind::kList) && b.is(Kind::kList)) {
      List out = a.items();
      out.insert(out.end(), b.items().begin(), b.items().end());
      steps_ += static_cast<int64_t>(out.size());
      return Value::list(std::move(out));
    }
    return fail(Code::kCorrupt, "'" + op + "' of " + name_of(a.kind()) + " and " + name_of(b.kind()));
  }

  Value of_strings(const std::string& op, const std::string& a, const std::string& b) {
    if (op == "+") return text(a + b);
    if (op == "<") return Value::boolean(a < b);
    if (op == "<=") return Value::boolean(a <= b);
    if (op == ">") return Value::boolean(a > b);
    if (op == ">=") return Value::boolean(a >= b);
    return fail(Code::kUnsupported, "'" + op + "' of strings is not supported");
  }

  Value of_numbers(const std::string& op, int64_t a, int64_t b) {
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

  bool contains(const Value& container, const Value& v) {
    if (container.is(Kind::kString)) {
      if (!v.is(Kind::kString)) return wrong("expected a string before 'in'", v).truth();
      return container.text().find(v.text()) != std::string::npos;
    }
    if (container.is(Kind::kDict)) return v.is(Kind::kString) && container.find(v.text()) != nullptr;
    List items = iterate(container);
    return std::find(items.begin(), items.end(), v) != items.end();
  }

  /// What {{ v }} prints, as Python's str().
  std::string printed(const Value& v) {
    switch (v.kind()) {
      case Kind::kUndefined:
        return "";
      case Kind::kNone:
        return "None";
      case Kind::kBool:
        return v.truth() ? "True" : "False";
      case Kind::kInt:
        return std::to_string(v.number());
      case Kind::kString:
        return v.text();
      default:
        fail(Code::kUnsupported, std::string("printing ") + name_of(v.kind()) + " is not supported");
        return "";
    }
  }

  // ---- calls

  Arguments arguments(const Node& node) {
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

  Value call(const Node& node) {
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
    if (callee.text == "raise_exception")
      return fail(Code::kInvalidArgument, printed(args.get(0, "message")));
    return fail(Code::kUnsupported, "function '" + callee.text + "' is not supported");
  }

  Value name_space(const Arguments& args) {
    for (const auto& [key, value] : args.keywords)
      if (value.nesting() > Value::kMaxNesting) return wrong("a namespace cannot hold this", value);
    return Value::name_space(args.keywords);
  }

  Value range(const Arguments& args) {
    bool both = args.positional.size() > 1;
    Value first = both ? args.get(0) : Value::integer(0), last = args.get(both ? 1 : 0);
    Value step = args.positional.size() > 2 ? args.get(2) : Value::integer(1);
    if (!is_number(first) || !is_number(last) || !is_number(step) || step.number() == 0)
      return fail(Code::kCorrupt, "range() of other than numbers");
    List out;
    for (int64_t i = first.number(); step.number() > 0 ? i < last.number() : i > last.number();
         i += step.number()) {
      out.push_back(Value::integer(i));
      if (out.size() > 100000) return fail(Code::kUnsupported, "range() over 100000 numbers");
    }
    return Value::list(std::move(out));
  }

  /// A macro sees its parameters and the variables of the template itself, not those of its caller.
  Value call_macro(const Node& macro, const Arguments& args) {
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

  Value method(const Value& object, const std::string& name, const Arguments& args) {
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
    return fail(Code::kUnsupported,
                "method '" + name + "' of " + name_of(object.kind()) + " is not supported");
  }

  static Value entries(const Value& dict, const std::string& what) {
    List out;
    for (const auto& [key, value] : dict.entries()) {
      if (what == "items")
        out.push_back(Value::list({Value::string(key), value}));
      else
        out.push_back(what == "keys" ? Value::string(key) : value);
    }
    return Value::list(std::move(out));
  }

  /// Argument i as text; `otherwise` if left out or none.
  std::optional<std::string> text_argument(const Arguments& args, size_t i, std::string_view name = {}) {
    Value v = args.get(i, name);
    if (v.is(Kind::kString)) return v.text();
    if (!v.is(Kind::kUndefined) && !v.is(Kind::kNone)) wrong("expected a string as argument", v);
    return std::nullopt;
  }

  Value string_method(const std::string& s, const std::string& name, const Arguments& args) {
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
    if (name == "join") return joined(iterate(args.get(0)), s);
    return fail(Code::kUnsupported, "method '" + name + "' of a string is not supported");
  }

  Value split(const std::string& s, const Arguments& args) {
    std::optional<std::string> separator = text_argument(args, 0, "sep");
    Value limit = args.get(1, "maxsplit");
    if (separator && separator->empty()) return fail(Code::kCorrupt, "split() by an empty separator");
    List out;
    for (std::string& part : split_text(s, separator, is_number(limit) ? limit.number() : -1))
      out.push_back(Value::string(std::move(part)));
    steps_ += static_cast<int64_t>(out.size());
    return Value::list(std::move(out));
  }

  Value replace(const std::string& s, const Arguments& args) {
    std::optional<std::string> from = text_argument(args, 0, "old"), to = text_argument(args, 1, "new");
    if (!from || !to || from->empty() || args.positional.size() > 2)
      return fail(Code::kUnsupported, "replace() takes two strings, the first not empty");
    std::string out;
    size_t at = 0;
    for (size_t next; (next = s.find(*from, at)) != std::string::npos && out.size() <= kMaxText;
         at = next + from->size())
      out.append(s, at, next - at).append(*to);
    return text(out.append(s, at));
  }

  Value cased(std::string s, bool upper) {
    for (char& c : s) {
      if (static_cast<unsigned char>(c) >= 0x80)
        return fail(Code::kUnsupported, "upper and lower case of other than ASCII is not supported");
      c = static_cast<char>(upper ? std::toupper(c) : std::tolower(c));
    }
    return text(std::move(s));
  }

  Value joined(const List& items, const std::string& separator) {
    std::string out;
    for (size_t i = 0; i < items.size() && out.size() <= kMaxText; ++i) {
      if (i > 0) out += separator;
      out += printed(items[i]);
    }
    return text(std::move(out));
  }

  // ---- filters and tests

  Value length(const Value& v) {
    if (v.is(Kind::kDict)) return Value::integer(static_cast<int64_t>(v.entries().size()));
    return Value::integer(static_cast<int64_t>(iterate(v).size()));
  }

  Value filter(const std::string& name, const Value& v, const Arguments& args) {
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

  Value selected(const std::string& name, const Value& v, const Arguments& args) {
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

  Value to_json(const Value& v, const Arguments& args) {
    if (!args.positional.empty() || !args.keywords.empty())
      return fail(Code::kUnsupported, "tojson with arguments is not supported");
    std::string out;
    write_json(v, out);
    return text(std::move(out));
  }

  void write_json(const Value& v, std::string& out) {
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

  bool test(const std::string& name, const Value& v, const Arguments& args) {
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
  /// Undefined values can be iterated over, and have a length.
  static bool has_items(const Value& v) {
    return v.is(Kind::kUndefined) || v.is(Kind::kString) || v.is(Kind::kList) || v.is(Kind::kDict);
  }

  std::vector<Scope> scopes_;
  Status status_;
  int64_t steps_ = 0;
  int depth_ = 0, calls_ = 0, line_ = 0;
};

}  // namespace

Result<Template> Template::parse(std::string_view source) {
  if (source.size() > (size_t{1} << 20)) return Status(Code::kUnsupported, "a template over 1 MiB");
  SLIM_ASSIGN(NodePtr root, parse_template(source));
  Template out;
  out.root_ = std::move(root);
  return out;
}

Result<std::string> Template::render(const Dict& globals) const { return Renderer(globals).run(*root_); }

}  // namespace slim::model::jinja
