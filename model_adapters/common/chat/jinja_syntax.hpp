#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "slim/status.hpp"

/// Inside of jinja.cpp: tokens and the syntax tree.
namespace slim::model::jinja {

struct Token {
  enum class Kind : uint8_t {
    kText,
    kBlockBegin,
    kBlockEnd,
    kPrintBegin,
    kPrintEnd,
    kName,
    kString,
    kInt,
    kOperator,
    kEnd
  };
  Kind kind;
  std::string text;
  int line;
};

/// Whitespace control is done here: texts are what is printed.
Result<std::vector<Token>> tokenize(std::string_view source);

/// One node of the syntax tree; which fields a kind uses is said behind it.
struct Node {
  enum class Kind : uint8_t {
    // statements
    kText,   // text
    kPrint,  // a[0]
    kFor,    // names: targets; a[0]: iterable, a[1] (may be null): condition; body, other: else
    kIf,     // a[0]: condition; body, other
    kSet,    // names[0], names[1] if an attribute of a namespace; a[0], or body
    kMacro,  // text: name; names: parameters; a: their defaults, null where there is none; body
    kGroup,  // body
    kBreak,
    kContinue,
    // expressions
    kConstant,   // text: kind of "string", "int", "true", "false", "none"; names[0]: spelling
    kName,       // text
    kList,       // a
    kDict,       // a: key, value, key, value...
    kAttribute,  // a[0], text
    kItem,       // a[0], a[1]
    kSlice,      // a[0], a[1..3], null where left out
    kCall,       // a[0]: what is called; a[1..]: arguments; names: keywords of the last ones
    kFilter,     // text; a[0]: operand; a[1..]: arguments; names: keywords of the last ones
    kTest,       // the same
    kUnary,      // text: "not", "-", "+"; a[0]
    kBinary,     // text: operator; a[0], a[1]
    kCondition   // a[0] if a[1] else a[2] (may be null)
  };
  Kind kind;
  int line;
  int height = 0;  ///< levels of `a` below
  std::string text;
  std::vector<std::string> names;
  std::vector<std::unique_ptr<Node>> a, body, other;
};
using NodePtr = std::unique_ptr<Node>;

/// The root is a kGroup.
Result<NodePtr> parse_template(std::string_view source);

}  // namespace slim::model::jinja
