#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/chat/jinja.hpp"
#include "common/chat/jinja_syntax.hpp"

namespace slim::model::jinja {

/// "a string", as errors name what they found.
const char* name_of(Value::Kind);

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
/// Statements are in jinja.cpp, the rest in jinja_expressions.cpp, jinja_calls.cpp and jinja_filters.cpp.
class Renderer {
 public:
  explicit Renderer(const Dict& globals) {
    scopes_.emplace_back();
    // Defined, as templates ask before they call; what they do is in call().
    for (const char* function : {"namespace", "dict", "range", "raise_exception", "strftime_now"})
      scopes_.front()[function] = Value::none();
    for (const auto& [name, value] : globals) scopes_.front()[name] = value;
  }
  Result<std::string> run(const Node& root);

 private:
  using Kind = Value::Kind;
  using NodeKind = Node::Kind;
  using Scope = std::map<std::string, Value, std::less<>>;
  using Nodes = std::vector<NodePtr>;
  enum class Flow : uint8_t { kNext, kBreak, kContinue };
  static constexpr int64_t kMaxSteps = 10'000'000;
  static constexpr size_t kMaxText = size_t{64} << 20;
  static constexpr size_t kMaxMade = size_t{256}
                                     << 20;  ///< of all values together, also of those that are gone
  static constexpr int64_t kMaxCharacters = int64_t{1} << 20;  ///< of a text that is taken apart
  static constexpr int kMaxDepth = 600;
  static constexpr int kMaxCalls = 64;

  /// Keeps the first error, with its line; gives an undefined value.
  Value fail(Code code, const std::string& what);
  Value wrong(const std::string& what, const Value& found);
  bool failed() const { return !status_.ok(); }
  /// Counts a step; false when the template is over its bounds.
  bool enter(const Node& node);
  struct Deeper {
    explicit Deeper(int& depth) : depth(depth) { ++depth; }
    ~Deeper() { --depth; }
    int& depth;
  };
  /// Counts what an operation costs beside its node; false when the template is over its bounds.
  bool spend(int64_t steps);
  /// A text that the template made.
  Value text(std::string v);
  /// ==, which for containers visits all that they hold.
  bool equal(const Value& a, const Value& b);

  // ---- names
  Value lookup(const std::string& name) const;

  // ---- statements
  Flow execute(const Nodes& nodes, std::string& out);
  Flow execute(const Node& node, std::string& out);
  void set(const Node& node);
  /// Binds the loop's targets to one item.
  void bind(const Node& node, const Value& item);
  Flow loop(const Node& node, std::string& out);
  List iterate(const Value& v);

  // ---- expressions
  Value evaluate(const NodePtr& node) { return node == nullptr ? Value() : evaluate(*node); }
  Value evaluate(const Node& node);
  static Value constant(const Node& node);
  Value list(const Node& node);
  Value dict(const Node& node);
  Value attribute(const Value& v, const std::string& name);
  Value item(const Value& v, const Value& key);
  Value slice(const Node& node);
  Value unary(const std::string& op, const Value& v);
  static bool is_number(const Value& v) { return v.is(Kind::kInt) || v.is(Kind::kBool); }
  Value binary(const Node& node);
  Value of_strings(const std::string& op, const std::string& a, const std::string& b);
  Value of_numbers(const std::string& op, int64_t a, int64_t b);
  bool contains(const Value& container, const Value& v);
  /// What {{ v }} prints, as Python's str().
  std::string printed(const Value& v);

  // ---- calls
  Arguments arguments(const Node& node);
  Value call(const Node& node);
  Value name_space(const Arguments& args);
  Value range(const Arguments& args);
  /// A macro sees its parameters and the variables of the template itself, not those of its caller.
  Value call_macro(const Node& macro, const Arguments& args);
  Value method(const Value& object, const std::string& name, const Arguments& args);
  static Value entries(const Value& dict, const std::string& what);
  /// Argument i as text; `otherwise` if left out or none.
  std::optional<std::string> text_argument(const Arguments& args, size_t i, std::string_view name = {});
  Value string_method(const std::string& s, const std::string& name, const Arguments& args);
  Value split(const std::string& s, const Arguments& args);
  Value replace(const std::string& s, const Arguments& args);
  Value cased(std::string s, bool upper);
  Value capitalized(std::string s);
  Value now(const Arguments& args);
  Value joined(const List& items, const std::string& separator);

  // ---- filters and tests
  Value length(const Value& v);
  Value filter(const std::string& name, const Value& v, const Arguments& args);
  Value selected(const std::string& name, const Value& v, const Arguments& args);
  Value to_json(const Value& v, const Arguments& args);
  /// How json.dumps writes; indent < 0: on one line.
  struct JsonStyle {
    int64_t indent = -1;
    std::string comma, colon = ": ";
    bool sort = false;
  };
  void write_json(const Value& v, const JsonStyle& style, int64_t level, std::string& out);
  template <class Items, class Write>
  void write_json_items(const Items& items, const JsonStyle& style, int64_t level, std::string_view brackets,
                        std::string& out, const Write& write);
  Value mapped(const Value& v, const Arguments& args);
  bool test(const std::string& name, const Value& v, const Arguments& args);
  /// Undefined values can be iterated over, and have a length.
  static bool has_items(const Value& v);

  std::vector<Scope> scopes_;
  Status status_;
  int64_t steps_ = 0;
  size_t made_ = 0;
  int depth_ = 0, calls_ = 0, line_ = 0;
};

}  // namespace slim::model::jinja
