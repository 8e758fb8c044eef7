// Runs templates for tests/oracle. stdin: {"cases": [{"template": ..., "globals": {...}} or {"folder": ..., "messages": [...],
// "add_generation_prompt": ...}]}; stdout: a list of {"text": ...} or {"error": ...}.
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "common/chat/chat.hpp"
#include "common/chat/jinja.hpp"

namespace {

using slim::model::ChatTemplate;
using slim::model::jinja::Value;
using Json = nlohmann::ordered_json;

Value value_of(const Json& json) {
  if (json.is_string()) return Value::string(json.get<std::string>());
  if (json.is_boolean()) return Value::boolean(json.get<bool>());
  if (json.is_number_integer()) return Value::integer(json.get<int64_t>());
  if (json.is_array()) {
    slim::model::jinja::List items;
    for (const auto& item : json) items.push_back(value_of(item));
    return Value::list(std::move(items));
  }
  if (!json.is_object()) return Value::none();
  slim::model::jinja::Dict entries;
  for (const auto& [key, value] : json.items()) entries.emplace_back(key, value_of(value));
  return Value::dict(std::move(entries));
}

slim::Result<std::string> render_template(const Json& json) {
  SLIM_ASSIGN(auto parsed, slim::model::jinja::Template::parse(json["template"].get<std::string>()));
  return parsed.render(value_of(json["globals"]).entries());
}

std::vector<slim::Message> messages_of(const Json& json) {
  std::vector<slim::Message> out;
  for (const auto& m : json) {
    out.push_back({m["role"].get<std::string>(), {}});
    if (m["content"].is_string()) {
      out.back().content.push_back({slim::ContentPart::Kind::kText, m["content"].get<std::string>(), {}, {}});
      continue;
    }
    for (const auto& part : m["content"]) {
      slim::ContentPart item;
      if (part["type"] == "image")
        item.kind = slim::ContentPart::Kind::kImage;
      else if (part["type"] == "video")
        item.kind = slim::ContentPart::Kind::kVideo;
      else
        item.text = part["text"].get<std::string>();
      out.back().content.push_back(std::move(item));
    }
  }
  return out;
}

slim::Result<std::string> render_folder(const Json& json) {
  SLIM_ASSIGN(auto chat, ChatTemplate::from_folder(json["folder"].get<std::string>()));
  return chat.render(messages_of(json["messages"]), json["add_generation_prompt"].get<bool>());
}

}  // namespace

int main() {
  Json in = Json::parse(std::string{std::istreambuf_iterator<char>(std::cin), {}}), out = Json::array();
  for (const auto& item : in["cases"]) {
    auto text = item.contains("template") ? render_template(item) : render_folder(item);
    out.push_back(text.ok() ? Json{{"text", *text}} : Json{{"error", text.status().message()}});
  }
  std::cout << out.dump();
  return 0;
}
