#include "plugin/options_schema.h"

#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "util/nearest.h"

namespace slim {
namespace {

using Json = nlohmann::json;

/// A JSON scalar as options hold it: text without quotes.
std::string text_of(const Json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

Status invalid_schema(const std::string& plugin, const std::string& what) {
  return Status(Code::kInternal, "plugin '" + plugin + "' has an invalid options schema: " + what +
                                     "; this is a fault of the plugin");
}

// ---- the schema ---------------------------------------------------------------------------------------------------

bool numeric(const std::string& type) { return type == "integer" || type == "number"; }

/// "" if the keyword's value has the right form.
std::string keyword_fault(const std::string& keyword, const Json& value, const std::string& type) {
  if (keyword == "type" || keyword == "description" || keyword == "title")
    return value.is_string() ? "" : "is no string";
  if (keyword == "enum") return value.is_array() && !value.empty() ? "" : "is no list with entries";
  if (keyword == "default") return value.is_primitive() && !value.is_null() ? "" : "is no scalar";
  if (keyword == "minimum" || keyword == "maximum" || keyword == "exclusiveMinimum" ||
      keyword == "exclusiveMaximum") {
    return value.is_number() && numeric(type) ? "" : "is no number, or belongs to no number";
  }
  return "is not supported";
}

Status check_property(const std::string& plugin, const std::string& name, const Json& property) {
  const auto invalid = [&](const std::string& what) {
    return invalid_schema(plugin, "property '" + name + "' " + what);
  };
  if (!property.is_object()) return invalid("is no object");
  const auto type = property.find("type");
  if (type == property.end() || !type->is_string()) return invalid("has no type");
  const std::string type_name = type->get<std::string>();
  if (type_name != "string" && type_name != "boolean" && !numeric(type_name)) {
    return invalid("has type '" + type_name + "', expected string, integer, number or boolean");
  }
  for (const auto& [keyword, value] : property.items()) {
    const std::string fault = keyword_fault(keyword, value, type_name);
    if (!fault.empty()) return invalid("has '" + keyword + "', which " + fault);
  }
  return {};
}

/// The schema's "properties", checked; an empty object if it has none.
Result<Json> properties_of(const std::string& plugin, const std::string& schema) {
  const Json root = Json::parse(schema, nullptr, /*allow_exceptions=*/false);
  if (root.is_discarded() || !root.is_object()) return invalid_schema(plugin, "it is no JSON object");
  if (const auto type = root.find("type"); type != root.end() && *type != "object") {
    return invalid_schema(plugin, "its type is " + type->dump() + ", expected \"object\"");
  }
  const auto found = root.find("properties");
  if (found == root.end()) return Json::object();
  if (!found->is_object()) return invalid_schema(plugin, "'properties' is no object");
  for (const auto& [name, property] : found->items()) SLIM_TRY(check_property(plugin, name, property));
  return *found;
}

std::string range_text(const Json& property) {
  std::vector<std::string> parts;
  if (const auto values = property.find("enum"); values != property.end()) {
    for (const Json& value : *values) parts.push_back(text_of(value));
    return join(parts, " | ");
  }
  const std::pair<const char*, const char*> bounds[] = {
      {"minimum", ">= "}, {"exclusiveMinimum", "> "}, {"maximum", "<= "}, {"exclusiveMaximum", "< "}};
  for (const auto& [keyword, sign] : bounds) {
    if (const auto bound = property.find(keyword); bound != property.end())
      parts.push_back(sign + bound->dump());
  }
  return join(parts, " and ");
}

// ---- one value ----------------------------------------------------------------------------------------------------

template <class T>
std::optional<T> parse(const std::string& text) {
  T value{};
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc{} || stop != end) return std::nullopt;
  return value;
}

bool in_range(const Json& property, double value) {
  const auto holds = [&](const char* keyword, auto compare) {
    const auto bound = property.find(keyword);
    return bound == property.end() || compare(value, bound->get<double>());
  };
  return holds("minimum", std::greater_equal<>{}) && holds("maximum", std::less_equal<>{}) &&
         holds("exclusiveMinimum", std::greater<>{}) && holds("exclusiveMaximum", std::less<>{});
}

bool in_enum(const Json& property, const std::string& text) {
  const auto values = property.find("enum");
  if (values == property.end()) return true;
  return std::any_of(values->begin(), values->end(),
                     [&](const Json& value) { return text_of(value) == text; });
}

/// Whether the text parses as the property's type, and lies in its range.
bool fits(const Json& property, const std::string& text) {
  const std::string type = property.at("type").get<std::string>();
  if (type == "boolean" && text != "true" && text != "false") return false;
  if (numeric(type)) {
    const auto number = parse<double>(text);
    if (!number || !std::isfinite(*number) || !in_range(property, *number)) return false;
    if (type == "integer" && !parse<int64_t>(text)) return false;
  }
  return in_enum(property, text);
}

std::string expected(const Json& property) {
  const std::string type = property.at("type").get<std::string>();
  const std::string range = range_text(property);
  if (property.contains("enum")) return "one of " + range;
  if (type == "boolean") return "true or false";
  const std::string noun = (type == "integer" ? "an " : "a ") + type;
  return range.empty() ? noun : noun + " " + range;
}

std::vector<std::string> names_of(const Json& properties) {
  std::vector<std::string> names;
  for (const auto& [name, property] : properties.items()) names.push_back(name);
  return names;
}

Status unknown_option(const std::string& plugin, const std::string& name, const Json& properties) {
  const std::vector<std::string> names = names_of(properties);
  return Status(Code::kInvalidArgument,
                plugin + " has no option '" + name + "'" + did_you_mean(name, names) +
                    (names.empty() ? " (it has none)" : " (it has: " + join(names) + ")"));
}

}  // namespace

Result<Options> check_options(const std::string& plugin, const std::string& schema, const Options& raw) {
  SLIM_ASSIGN(const Json properties, properties_of(plugin, schema));
  Options options;
  for (const auto& [name, property] : properties.items()) {
    const auto fallback = property.find("default");
    if (fallback == property.end()) continue;
    options[name] = text_of(*fallback);
    if (!fits(property, options[name])) {
      return invalid_schema(
          plugin, "the default of '" + name + "' is " + options[name] + ", expected " + expected(property));
    }
  }
  for (const auto& [name, value] : raw) {
    const auto property = properties.find(name);
    if (property == properties.end()) return unknown_option(plugin, name, properties);
    if (!fits(*property, value)) {
      return Status(Code::kInvalidArgument,
                    plugin + "." + name + " = '" + value + "': expected " + expected(*property));
    }
    options[name] = value;
  }
  return options;
}

Result<std::vector<OptionInfo>> describe_options(const std::string& plugin, const std::string& schema) {
  SLIM_ASSIGN(const Json properties, properties_of(plugin, schema));
  std::vector<OptionInfo> infos;
  for (const auto& [name, property] : properties.items()) {
    const Json fallback = property.value("default", Json());
    infos.push_back({name, property.at("type").get<std::string>(), property.value("description", ""),
                     fallback.is_null() ? "" : text_of(fallback), range_text(property)});
  }
  return infos;
}

}  // namespace slim
