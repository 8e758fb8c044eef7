#include "common/text/tokenizer_component.hpp"

#include <cctype>

#include "common/text/unicode.hpp"

namespace slim::model {
namespace {

using nlohmann::json;

Status flatten(const json& value, const char* list, const std::string& where,
               std::vector<TokenizerComponent>& out) {
  if (value.is_null()) return {};
  SLIM_ASSIGN(std::string type, text_of(value, "type", where));
  if (type != "Sequence") {
    out.push_back({type, where, &value});
    return {};
  }
  auto items = value.find(list);
  if (items == value.end() || !items->is_array()) return corrupt_key(where + "." + list, "expected a list");
  for (size_t i = 0; i < items->size(); ++i)
    SLIM_TRY(flatten((*items)[i], list, where + "." + list + "[" + std::to_string(i) + "]", out));
  return {};
}

std::string escaped(const std::string& text) {
  std::string out;
  for (char c : text) {
    if (std::ispunct(static_cast<unsigned char>(c))) out += '\\';
    out += c;
  }
  return out;
}

}  // namespace

std::string shown(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace).substr(0, 120);
}

Status corrupt_key(const std::string& key, const std::string& what) {
  return Status(Code::kCorrupt, key + ": " + what);
}

Result<std::vector<TokenizerComponent>> components_of(const json& value, const char* list,
                                                      const std::string& where) {
  std::vector<TokenizerComponent> out;
  SLIM_TRY(flatten(value, list, where, out));
  return out;
}

Status unsupported_component(const TokenizerComponent& component, const std::string& supported) {
  return Status(Code::kUnsupported, component.where + ": component " + component.type +
                                        " is not supported; supported: " + supported);
}

Result<json> member_of(const json& object, const std::string& key, json::value_t type,
                       const std::string& where) {
  auto it = object.find(key);
  if (it == object.end()) return corrupt_key(where + "." + key, "missing");
  bool same = it->type() == type || (type == json::value_t::number_integer && it->is_number_integer());
  if (!same)
    return corrupt_key(where + "." + key, "found " + shown(*it) + ", expected " + json(type).type_name());
  return *it;
}

Result<std::string> text_of(const json& object, const std::string& key, const std::string& where) {
  auto it = object.is_object() ? object.find(key) : object.end();
  if (it == object.end() || !it->is_string())
    return corrupt_key(where + "." + key, "expected a string in " + shown(object));
  return it->get<std::string>();
}

Result<bool> flag_of(const json& object, const std::string& key, bool fallback, const std::string& where) {
  auto it = object.find(key);
  if (it == object.end()) return fallback;
  if (!it->is_boolean())
    return corrupt_key(where + "." + key, "found " + shown(*it) + ", expected true or false");
  return it->get<bool>();
}

bool is_index(const json& value, uint64_t limit) {
  return value.is_number_integer() && value >= 0 && value.get<uint64_t>() < limit;
}

Result<std::string> character_of(const json& object, const std::string& key, const std::string& where) {
  SLIM_ASSIGN(std::string text, text_of(object, key, where));
  size_t end = 0;
  if (!text.empty() && is_valid_utf8(text)) next_code_point(text, end);
  if (end == 0 || end != text.size())
    return corrupt_key(where + "." + key, "found '" + text + "', expected one character");
  return text;
}

Result<std::string> pattern_of(const json& object, const std::string& where) {
  SLIM_ASSIGN(json pattern, member_of(object, "pattern", json::value_t::object, where));
  const bool literal = pattern.contains("String");
  SLIM_ASSIGN(std::string text, text_of(pattern, literal ? "String" : "Regex", where + ".pattern"));
  if (text.empty()) return corrupt_key(where + ".pattern", "empty");
  return literal ? escaped(text) : text;
}

}  // namespace slim::model
