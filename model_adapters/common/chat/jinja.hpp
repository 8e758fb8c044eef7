#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "slim/status.hpp"

/// The part of the Jinja template language that chat templates of checkpoints use, with the settings that transformers
/// renders them with (trim_blocks, lstrip_blocks, loop controls, undefined names print nothing).
namespace slim::model::jinja {

struct Node;
class Value;
using List = std::vector<Value>;
using Dict = std::vector<std::pair<std::string, Value>>;  ///< in order of insertion

/// A value of a template. Cheap to copy: containers are shared.
class Value {
 public:
  enum class Kind : uint8_t {
    kUndefined,
    kNone,
    kBool,
    kInt,
    kDecimal,
    kString,
    kList,
    kDict,
    kNamespace,
    kMacro
  };

  Value() = default;  ///< undefined
  static Value none();
  static Value boolean(bool v);
  static Value integer(int64_t v);
  static Value decimal(
      std::string v);  ///< a number with a fraction, as JSON writes it: printed, not computed with
  static Value string(std::string v);
  static Value list(List v);
  static Value dict(Dict v);
  static Value name_space(Dict v);       ///< namespace(...): the one container that a template may change
  static Value macro(const Node* node);  ///< not owned

  Kind kind() const { return kind_; }
  bool is(Kind kind) const { return kind_ == kind; }
  int64_t number() const { return number_; }          ///< of kBool and kInt
  const std::string& text() const { return *text_; }  ///< of kString and kDecimal
  const List& items() const { return *list_; }
  const Dict& entries() const { return *dict_; }  ///< of kDict and kNamespace
  const Node* node() const { return node_; }

  bool truth() const;
  /// Containers inside each other; a namespace counts as more than kMaxNesting.
  int nesting() const { return nesting_; }
  static constexpr int kMaxNesting = 100;
  const Value* find(std::string_view key) const;       ///< null if there is none, or this has no keys
  void assign(const std::string& key, Value v) const;  ///< kNamespace only

 private:
  Kind kind_ = Kind::kUndefined;
  int nesting_ = 0;
  int64_t number_ = 0;
  std::shared_ptr<const std::string> text_;
  std::shared_ptr<const List> list_;
  std::shared_ptr<Dict> dict_;
  const Node* node_ = nullptr;
};

/// A parsed template. Immutable; render() may be called from any thread.
class Template {
 public:
  /// Errors: kCorrupt for broken syntax or UTF-8, kUnsupported for syntax that is not known; both name the line.
  static Result<Template> parse(std::string_view source);
  /// `globals`: the variables of the template. Errors: what the template raises itself (raise_exception), operations on
  /// wrong types, unknown filters, tests and functions, each with its line; more than 10 million steps, 64 MiB of text (256 of all), or
  /// 64 nested macro calls (hostile templates end).
  Result<std::string> render(const Dict& globals) const;

 private:
  std::shared_ptr<const Node> root_;
};

}  // namespace slim::model::jinja
