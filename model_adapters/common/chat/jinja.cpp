#include "common/chat/jinja.hpp"

#include <algorithm>

#include "common/chat/jinja_renderer.hpp"
#include "common/chat/jinja_text.hpp"
#include "common/text/unicode.hpp"

namespace slim::model::jinja {

Result<std::string> Renderer::run(const Node& root) {
  std::string out;
  execute(root.body, out);
  SLIM_TRY(status_);
  return out;
}

Value Renderer::fail(Code code, const std::string& what) {
  if (status_.ok()) status_ = Status(code, "line " + std::to_string(line_) + ": " + what);
  return {};
}

Value Renderer::wrong(const std::string& what, const Value& found) {
  return fail(Code::kCorrupt, what + ": found " + name_of(found.kind()));
}

bool Renderer::enter(const Node& node) {
  line_ = node.line;
  spend(1);
  if (depth_ > kMaxDepth) fail(Code::kUnsupported, "the template nests too deep");
  return !failed();
}

bool Renderer::spend(int64_t steps) {
  steps_ += steps;
  if (steps_ > kMaxSteps) fail(Code::kUnsupported, "the template takes too many steps");
  return !failed();
}

Value Renderer::text(std::string v) {
  spend(static_cast<int64_t>(v.size() / 256));  // copying costs too
  made_ += v.size();
  if (v.size() > kMaxText) return fail(Code::kUnsupported, "a text over 64 MiB");
  if (made_ > kMaxMade) return fail(Code::kUnsupported, "the template makes texts of over 256 MiB");
  return Value::string(std::move(v));
}

bool Renderer::equal(const Value& a, const Value& b) {
  if (!spend(1)) return false;
  if (is_number(a) && is_number(b)) return a.number() == b.number();
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case Kind::kDecimal:
    case Kind::kString:
      return spend(static_cast<int64_t>(std::min(a.text().size(), b.text().size()) / 256)) &&
             a.text() == b.text();
    case Kind::kList:
      return std::ranges::equal(a.items(), b.items(),
                                [&](const Value& x, const Value& y) { return equal(x, y); });
    case Kind::kDict:
      return a.entries().size() == b.entries().size() &&
             std::ranges::all_of(a.entries(), [&](const auto& entry) {
               const Value* other = b.find(entry.first);
               return other != nullptr && equal(*other, entry.second);
             });
    case Kind::kNamespace:
      return &a.entries() == &b.entries();
    case Kind::kMacro:
      return a.node() == b.node();
    default:
      return true;
  }
}

Value Renderer::lookup(const std::string& name) const {
  for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope)
    if (auto it = scope->find(name); it != scope->end()) return it->second;
  return {};
}

Renderer::Flow Renderer::execute(const Nodes& nodes, std::string& out) {
  for (const NodePtr& node : nodes) {
    Flow flow = execute(*node, out);
    if (failed()) return Flow::kBreak;
    if (flow != Flow::kNext) return flow;
    if (out.size() > kMaxText) fail(Code::kUnsupported, "a text over 64 MiB");
  }
  return Flow::kNext;
}

Renderer::Flow Renderer::execute(const Node& node, std::string& out) {
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

void Renderer::set(const Node& node) {
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

void Renderer::bind(const Node& node, const Value& item) {
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

Renderer::Flow Renderer::loop(const Node& node, std::string& out) {
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
    spend(10);  // what it costs to set the loop's variables
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

List Renderer::iterate(const Value& v) {
  List out;
  if (v.is(Kind::kList)) return v.items();
  if (v.is(Kind::kString)) {
    if (count_characters(v.text()) > kMaxCharacters)
      fail(Code::kUnsupported, "a text of over a million characters is taken apart");
    else
      for (std::string& c : characters(v.text())) out.push_back(Value::string(std::move(c)));
  } else if (v.is(Kind::kDict)) {
    for (const auto& [key, value] : v.entries()) out.push_back(Value::string(key));
  } else if (!v.is(Kind::kUndefined)) {
    wrong("expected something to iterate over", v);
  }
  spend(static_cast<int64_t>(out.size()));
  return out;
}

Result<Template> Template::parse(std::string_view source) {
  if (source.size() > (size_t{1} << 20)) return Status(Code::kUnsupported, "a template over 1 MiB");
  if (!is_valid_utf8(source)) return Status(Code::kCorrupt, "not valid UTF-8");
  SLIM_ASSIGN(NodePtr root, parse_template(source));
  Template out;
  out.root_ = std::move(root);
  return out;
}

Result<std::string> Template::render(const Dict& globals) const { return Renderer(globals).run(*root_); }

}  // namespace slim::model::jinja
