#include <algorithm>

#include "common/chat/jinja_renderer.hpp"

namespace slim::model::jinja {

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
Value Value::decimal(std::string v) {
  Value out = string(std::move(v));
  out.kind_ = Kind::kDecimal;
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
    case Kind::kDecimal:
      return *text_ != "0.0" && *text_ != "-0.0";
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

const char* name_of(Value::Kind kind) {
  static constexpr const char* kNames[] = {
      "an undefined value", "none",   "a boolean", "a number",    "a number with a fraction",
      "a string",           "a list", "a mapping", "a namespace", "a macro"};
  return kNames[static_cast<size_t>(kind)];
}

}  // namespace slim::model::jinja
