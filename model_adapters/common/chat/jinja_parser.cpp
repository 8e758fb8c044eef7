#include <algorithm>
#include <initializer_list>

#include "common/chat/jinja_syntax.hpp"

namespace slim::model::jinja {
namespace {

using Kind = Token::Kind;
using NodeKind = Node::Kind;
using Names = std::initializer_list<std::string_view>;

/// Recursive descent. The first error is kept; after it every token reads as the end.
class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  Result<NodePtr> run() {
    NodePtr root = make(NodeKind::kGroup);
    root->body = statements({});
    SLIM_TRY(status_);
    return root;
  }

 private:
  static constexpr int kMaxDepth = 200, kMaxHeight = 400;
  /// Counts nesting, so that hostile templates cannot exhaust the stack.
  struct Nested {
    explicit Nested(Parser& p) : parser(p) {
      if (++parser.depth_ > kMaxDepth) parser.fail(Code::kUnsupported, "nested deeper than 200");
    }
    ~Nested() { --parser.depth_; }
    Parser& parser;
  };

  // ---- tokens

  const Token& peek() const { return status_.ok() ? tokens_[at_] : tokens_.back(); }
  const Token& peek_next() const {
    return status_.ok() && at_ + 1 < tokens_.size() ? tokens_[at_ + 1] : tokens_.back();
  }
  Token take() {
    Token token = peek();
    if (at_ + 1 < tokens_.size()) ++at_;
    return token;
  }
  bool is(Kind kind, std::string_view text) const { return peek().kind == kind && peek().text == text; }
  bool is_op(std::string_view text) const { return is(Kind::kOperator, text); }
  bool is_word(std::string_view text) const { return is(Kind::kName, text); }
  bool accept_op(std::string_view text) { return is_op(text) && (take(), true); }
  bool accept_word(std::string_view text) { return is_word(text) && (take(), true); }
  void fail(Code code, const std::string& what) {
    if (status_.ok()) status_ = Status(code, "line " + std::to_string(peek().line) + ": " + what);
  }
  void expect(Kind kind, std::string_view text, const char* what) {
    if (is(kind, text)) {
      take();
    } else {
      fail(Code::kCorrupt, "expected " + std::string(what) + ", found '" + peek().text + "'");
    }
  }
  void expect_op(std::string_view text) { expect(Kind::kOperator, text, std::string(text).c_str()); }
  void end_block() { expect(Kind::kBlockEnd, "", "the end of the tag"); }
  std::string name() {
    if (peek().kind != Kind::kName) fail(Code::kCorrupt, "expected a name, found '" + peek().text + "'");
    return take().text;
  }
  /// Height of expressions is bounded too: chains of operators nest without recursion here, but not where they are run.
  void adopt(Node& parent, NodePtr child) {
    if (child != nullptr) parent.height = std::max(parent.height, child->height + 1);
    if (parent.height > kMaxHeight) fail(Code::kUnsupported, "an expression with too many operators");
    parent.a.push_back(std::move(child));
  }
  NodePtr make(NodeKind kind, std::string text = {}) const {
    auto node = std::make_unique<Node>();
    node->kind = kind;
    node->line = tokens_[at_].line;
    node->text = std::move(text);
    return node;
  }

  // ---- statements

  /// Up to a tag named by `ends`, whose name is taken and left in closed_by_.
  std::vector<NodePtr> statements(Names ends) {
    Nested nested(*this);
    closed_by_.clear();
    std::vector<NodePtr> out;
    while (status_.ok()) {
      if (peek().kind == Kind::kEnd) {
        if (ends.size() != 0) fail(Code::kCorrupt, "missing " + std::string(*ends.begin()));
        return out;
      }
      Token token = take();
      if (token.kind == Kind::kText) {
        out.push_back(make(NodeKind::kText, std::move(token.text)));
      } else if (token.kind == Kind::kPrintBegin) {
        out.push_back(make(NodeKind::kPrint));
        adopt(*out.back(), tuple());
        expect(Kind::kPrintEnd, "", "the end of the tag");
      } else if (std::find(ends.begin(), ends.end(), peek().text) != ends.end()) {
        closed_by_ = take().text;
        return out;
      } else {
        out.push_back(statement());
      }
    }
    return out;
  }

  NodePtr statement() {
    std::string word = name();
    if (word == "for") return for_loop();
    if (word == "if") return condition();
    if (word == "set") return set();
    if (word == "macro") return macro();
    if (word == "break" || word == "continue") {
      NodePtr node = make(word == "break" ? NodeKind::kBreak : NodeKind::kContinue);
      end_block();
      return node;
    }
    if (word == "generation") {  // marks the assistant's tokens for training; prints as without it
      NodePtr node = make(NodeKind::kGroup);
      end_block();
      node->body = statements({"endgeneration"});
      end_block();
      return node;
    }
    fail(Code::kUnsupported, "statement '" + word + "' is not supported");
    return make(NodeKind::kGroup);
  }

  NodePtr for_loop() {
    NodePtr node = make(NodeKind::kFor);
    do node->names.push_back(name());
    while (accept_op(","));
    expect(Kind::kName, "in", "in");
    adopt(*node, disjunction());
    adopt(*node, accept_word("if") ? expression() : nullptr);
    if (is_word("recursive")) fail(Code::kUnsupported, "recursive loops are not supported");
    end_block();
    node->body = statements({"endfor", "else"});
    if (closed_by_ == "else") {
      end_block();
      node->other = statements({"endfor"});
    }
    end_block();
    return node;
  }

  NodePtr condition() {
    Nested nested(*this);
    NodePtr node = make(NodeKind::kIf);
    adopt(*node, tuple());
    end_block();
    node->body = statements({"endif", "elif", "else"});
    if (closed_by_ == "elif") {
      node->other.push_back(condition());  // takes the endif too
      return node;
    }
    if (closed_by_ == "else") {
      end_block();
      node->other = statements({"endif"});
    }
    end_block();
    return node;
  }

  NodePtr set() {
    NodePtr node = make(NodeKind::kSet);
    node->names.push_back(name());
    if (accept_op(".")) node->names.push_back(name());
    if (accept_op("=")) {
      adopt(*node, tuple());
    } else {
      end_block();
      node->body = statements({"endset"});
    }
    end_block();
    return node;
  }

  NodePtr macro() {
    NodePtr node = make(NodeKind::kMacro, name());
    expect_op("(");
    while (status_.ok() && !is_op(")")) {
      node->names.push_back(name());
      adopt(*node, accept_op("=") ? expression() : nullptr);
      if (!is_op(")")) expect_op(",");
    }
    expect_op(")");
    end_block();
    node->body = statements({"endmacro"});
    end_block();
    return node;
  }

  // ---- expressions, weakest first

  NodePtr tuple() {
    NodePtr first = expression();
    if (!is_op(",")) return first;
    NodePtr node = make(NodeKind::kList);
    adopt(*node, std::move(first));
    while (accept_op(",")) adopt(*node, expression());
    return node;
  }

  NodePtr expression() {
    Nested nested(*this);
    NodePtr value = disjunction();
    while (status_.ok() && accept_word("if")) {
      NodePtr node = make(NodeKind::kCondition);
      adopt(*node, std::move(value));
      adopt(*node, disjunction());
      adopt(*node, accept_word("else") ? expression() : nullptr);
      value = std::move(node);
    }
    return value;
  }

  NodePtr binary(std::string op, NodePtr left, NodePtr right) {
    NodePtr node = make(NodeKind::kBinary, std::move(op));
    adopt(*node, std::move(left));
    adopt(*node, std::move(right));
    return node;
  }

  /// A row of operators of one strength, from the left.
  NodePtr row(Names operators, Kind kind, NodePtr (Parser::*operand)()) {
    NodePtr left = (this->*operand)();
    while (status_.ok() && peek().kind == kind &&
           std::find(operators.begin(), operators.end(), peek().text) != operators.end()) {
      std::string op = take().text;
      NodePtr right = (this->*operand)();
      left = binary(std::move(op), std::move(left), std::move(right));
    }
    return left;
  }
  NodePtr disjunction() { return row({"or"}, Kind::kName, &Parser::conjunction); }
  NodePtr conjunction() { return row({"and"}, Kind::kName, &Parser::negation); }
  NodePtr sum() { return row({"+", "-"}, Kind::kOperator, &Parser::concatenation); }
  NodePtr concatenation() { return row({"~"}, Kind::kOperator, &Parser::product); }
  NodePtr product() { return row({"*", "//", "%"}, Kind::kOperator, &Parser::filtered); }

  NodePtr negation() {
    Nested nested(*this);
    if (!accept_word("not")) return comparison();
    NodePtr node = make(NodeKind::kUnary, "not");
    adopt(*node, negation());
    return node;
  }

  /// "" if there is no comparison operator here.
  std::string comparison_operator() {
    for (std::string_view op : {"==", "!=", "<", "<=", ">", ">="})
      if (is_op(op)) return take().text;
    if (accept_word("in")) return "in";
    if (!is_word("not") || peek_next().kind != Kind::kName || peek_next().text != "in") return "";
    take(), take();
    return "not in";
  }

  NodePtr comparison() {
    NodePtr left = sum();
    std::string op = comparison_operator();
    if (op.empty()) return left;
    NodePtr node = binary(op, std::move(left), sum());
    if (!comparison_operator().empty()) fail(Code::kUnsupported, "chains of comparisons are not supported");
    return node;
  }

  NodePtr filtered() { return filters(unary()); }

  NodePtr unary() {
    Nested nested(*this);
    if (!is_op("-") && !is_op("+")) return postfix(primary());
    NodePtr node = make(NodeKind::kUnary, take().text);
    adopt(*node, unary());
    return node;
  }

  NodePtr filters(NodePtr value) {
    while (status_.ok()) {
      if (accept_op("|")) {
        NodePtr node = make(NodeKind::kFilter, name());
        adopt(*node, std::move(value));
        if (accept_op("(")) arguments(*node);
        value = std::move(node);
      } else if (accept_word("is")) {
        value = test(std::move(value));
      } else {
        return value;
      }
    }
    return value;
  }

  NodePtr test(NodePtr value) {
    bool negated = accept_word("not");
    NodePtr node = make(NodeKind::kTest, name());
    adopt(*node, std::move(value));
    static constexpr std::string_view kFollowers[] = {"else", "or", "and", "is", "if", "not", "in"};
    bool word = peek().kind == Kind::kName &&
                std::find(std::begin(kFollowers), std::end(kFollowers), peek().text) == std::end(kFollowers);
    if (accept_op("(")) {
      arguments(*node);
    } else if (word || peek().kind == Kind::kString || peek().kind == Kind::kInt || is_op("[") ||
               is_op("{")) {
      adopt(*node, postfix(primary()));
    }
    if (!negated) return node;
    NodePtr outer = make(NodeKind::kUnary, "not");
    adopt(*outer, std::move(node));
    return outer;
  }

  /// Behind the opening parenthesis.
  void arguments(Node& node) {
    while (status_.ok() && !is_op(")")) {
      bool keyword =
          peek().kind == Kind::kName && peek_next().kind == Kind::kOperator && peek_next().text == "=";
      if (keyword) {
        node.names.push_back(name());
        take();
      } else if (!node.names.empty()) {
        fail(Code::kCorrupt, "a positional argument behind a keyword");
      }
      adopt(node, expression());
      if (!is_op(")")) expect_op(",");
    }
    expect_op(")");
  }

  NodePtr postfix(NodePtr value) {
    while (status_.ok()) {
      NodePtr node;
      if (accept_op(".")) {
        node = make(NodeKind::kAttribute, name());
        adopt(*node, std::move(value));
      } else if (accept_op("[")) {
        node = subscript(std::move(value));
      } else if (accept_op("(")) {
        node = make(NodeKind::kCall);
        adopt(*node, std::move(value));
        arguments(*node);
      } else {
        return value;
      }
      value = std::move(node);
    }
    return value;
  }

  NodePtr subscript(NodePtr value) {
    NodePtr node = make(NodeKind::kItem);
    adopt(*node, std::move(value));
    adopt(*node, is_op(":") ? nullptr : expression());
    if (is_op(":")) {
      node->kind = NodeKind::kSlice;
      for (int part = 0; part < 2; ++part)
        adopt(*node, accept_op(":") && !is_op(":") && !is_op("]") ? expression() : nullptr);
    }
    expect_op("]");
    return node;
  }

  NodePtr constant(std::string kind, std::string spelling) {
    NodePtr node = make(NodeKind::kConstant, std::move(kind));
    node->names.push_back(std::move(spelling));
    return node;
  }

  NodePtr primary() {
    Token token = take();
    if (token.kind == Kind::kString) {
      while (peek().kind == Kind::kString) token.text += take().text;  // neighbours are one string
      return constant("string", std::move(token.text));
    }
    if (token.kind == Kind::kInt) return constant("int", std::move(token.text));
    if (token.kind == Kind::kName) {
      for (std::string_view word : {"true", "false", "none"}) {
        std::string capital(word);
        capital[0] = static_cast<char>(capital[0] - 'a' + 'A');
        if (token.text == word || token.text == capital) return constant(std::string(word), "");
      }
      return make(NodeKind::kName, std::move(token.text));
    }
    if (token.kind == Kind::kOperator && token.text == "(") return parenthesis();
    if (token.kind == Kind::kOperator && (token.text == "[" || token.text == "{"))
      return display(token.text == "{");
    fail(Code::kCorrupt, "expected an expression, found '" + token.text + "'");
    return make(NodeKind::kList);
  }

  NodePtr parenthesis() {
    if (accept_op(")")) return make(NodeKind::kList);
    NodePtr node = tuple();
    expect_op(")");
    return node;
  }

  NodePtr display(bool dict) {
    Nested nested(*this);
    std::string_view close = dict ? "}" : "]";
    NodePtr node = make(dict ? NodeKind::kDict : NodeKind::kList);
    while (status_.ok() && !is_op(close)) {
      adopt(*node, expression());
      if (dict) {
        expect_op(":");
        adopt(*node, expression());
      }
      if (!is_op(close)) expect_op(",");
    }
    expect_op(close);
    return node;
  }

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
  std::string closed_by_;
  Status status_;
};

}  // namespace

Result<NodePtr> parse_template(std::string_view source) {
  SLIM_ASSIGN(auto tokens, tokenize(source));
  return Parser(std::move(tokens)).run();
}

}  // namespace slim::model::jinja
