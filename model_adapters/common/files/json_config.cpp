#include "common/files/json_config.hpp"

#include <nlohmann/json.hpp>

#include "common/files/side_file.hpp"

namespace slim::model {
using Json = nlohmann::json;

struct JsonConfig::Node {
  Json value;
  std::string path;               ///< "config.json: text_config." or "config.json: "
  std::shared_ptr<Status> error;  ///< of the whole document

  /// The value at `key`, or null; a missing key without a fallback is an error.
  const Json* find(std::string_view key, bool required) const {
    const auto it = value.find(key);
    if (it != value.end() && !it->is_null()) return &*it;
    if (required) fail(key, "is missing");
    return nullptr;
  }
  void fail(std::string_view key, std::string_view what) const {
    if (error->ok()) *error = Status(Code::kCorrupt, path + std::string(key) + " " + std::string(what));
  }
  void wrong_type(std::string_view key, const Json& found, std::string_view expected) const {
    fail(key, "is " + found.dump().substr(0, 60) + ", expected " + std::string(expected));
  }
};

Result<JsonConfig> JsonConfig::parse(std::string_view text, std::string where) {
  SLIM_ASSIGN(Json value, parse_side_json(text, where));
  if (!value.is_object()) return Status(Code::kCorrupt, where + " is no JSON object");
  auto node = std::make_shared<Node>();
  *node = {std::move(value), std::move(where) + ": ", std::make_shared<Status>()};
  return JsonConfig(std::move(node));
}

bool JsonConfig::names(std::string_view key) const { return node_->value.contains(key); }

bool JsonConfig::has(std::string_view key) const { return node_->find(key, false) != nullptr; }

JsonConfig JsonConfig::child(std::string_view key) const {
  auto node = std::make_shared<Node>();
  *node = {Json::object(), node_->path + std::string(key) + ".", node_->error};
  if (const Json* found = node_->find(key, false)) {
    if (found->is_object()) {
      node->value = *found;
    } else {
      node_->wrong_type(key, *found, "an object");
    }
  }
  return JsonConfig(std::move(node));
}

int64_t JsonConfig::integer(std::string_view key, std::optional<int64_t> fallback, int64_t least,
                            int64_t most) const {
  const Json* found = node_->find(key, !fallback);
  if (!found) return fallback.value_or(0);
  if (found->is_number_integer()) {
    // An unsigned value beyond int64 wraps to a negative one here, and is refused with the range.
    const auto value = found->get<int64_t>();
    if (value >= least && value <= most) return value;
  }
  node_->wrong_type(key, *found, "an integer from " + std::to_string(least) + " to " + std::to_string(most));
  return 0;
}

double JsonConfig::number(std::string_view key, std::optional<double> fallback) const {
  const Json* found = node_->find(key, !fallback);
  if (!found) return fallback.value_or(0);
  if (found->is_number()) return found->get<double>();
  node_->wrong_type(key, *found, "a number");
  return 0;
}

bool JsonConfig::boolean(std::string_view key, std::optional<bool> fallback) const {
  const Json* found = node_->find(key, !fallback);
  if (!found) return fallback.value_or(false);
  if (found->is_boolean()) return found->get<bool>();
  node_->wrong_type(key, *found, "true or false");
  return false;
}

std::string JsonConfig::text(std::string_view key, std::optional<std::string> fallback) const {
  const Json* found = node_->find(key, !fallback);
  if (!found) return fallback.value_or("");
  if (found->is_string()) return found->get<std::string>();
  node_->wrong_type(key, *found, "a string");
  return "";
}

std::string JsonConfig::token(std::string_view key, const std::string& fallback) const {
  const Json* found = node_->find(key, false);
  return found && found->is_object() ? child(key).text("content") : text(key, fallback);
}

std::vector<int64_t> JsonConfig::integers(std::string_view key,
                                          std::optional<std::vector<int64_t>> fallback) const {
  const Json* found = node_->find(key, !fallback);
  if (!found) return fallback.value_or(std::vector<int64_t>{});
  const Json list = found->is_array() ? *found : Json::array({*found});
  std::vector<int64_t> values;
  for (const auto& item : list) {
    if (!item.is_number_integer()) {
      node_->wrong_type(key, *found, "integers");
      return {};
    }
    values.push_back(item.get<int64_t>());
  }
  return values;
}

std::vector<double> JsonConfig::numbers(std::string_view key,
                                        std::optional<std::vector<double>> fallback) const {
  const Json* found = node_->find(key, !fallback);
  if (!found) return fallback.value_or(std::vector<double>{});
  const Json list = found->is_array() ? *found : Json::array({*found});
  std::vector<double> values;
  for (const auto& item : list) {
    if (!item.is_number()) {
      node_->wrong_type(key, *found, "numbers");
      return {};
    }
    values.push_back(item.get<double>());
  }
  return values;
}

std::vector<std::string> JsonConfig::texts(std::string_view key,
                                           std::optional<std::vector<std::string>> fallback) const {
  const Json* found = node_->find(key, !fallback);
  if (!found) return fallback.value_or(std::vector<std::string>{});
  const bool strings = found->is_array() && std::all_of(found->begin(), found->end(),
                                                        [](const Json& item) { return item.is_string(); });
  if (strings) return found->get<std::vector<std::string>>();
  node_->wrong_type(key, *found, "a list of strings");
  return {};
}

void JsonConfig::fail(std::string_view key, std::string_view what) const { node_->fail(key, what); }
Status JsonConfig::status() const { return *node_->error; }

}  // namespace slim::model
