#include "common/chat/chat.hpp"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "common/chat/jinja.hpp"
#include "common/chat/json_value.hpp"
#include "common/files/side_file.hpp"
#include "common/text/unicode.hpp"

namespace slim::model {
namespace {

using jinja::Value;
using nlohmann::json;

Result<std::string> read_file(const std::filesystem::path& path) {
  SLIM_ASSIGN(std::string text, read_side_file(path));
  if (!is_valid_utf8(text)) return Status(Code::kCorrupt, path.string() + ": not valid UTF-8");
  return text;
}

Result<json> read_json(const std::filesystem::path& path) {
  SLIM_ASSIGN(std::string text, read_file(path));
  SLIM_ASSIGN(json out, parse_side_json(text, path.string()));
  if (!out.is_object()) return Status(Code::kCorrupt, path.string() + ": expected a JSON object");
  return out;
}

/// The template of a JSON file; none if it has none.
Result<std::optional<std::string>> template_of(const json& file, const std::string& where) {
  auto it = file.find("chat_template");
  if (it == file.end() || it->is_null()) return std::optional<std::string>();
  if (it->is_string()) return std::optional(it->get<std::string>());
  if (it->is_array())
    for (const json& entry : *it)
      if (entry.is_object() && entry.value("name", json()) == "default" &&
          entry.value("template", json()).is_string())
        return std::optional(entry["template"].get<std::string>());
  return Status(Code::kCorrupt,
                where + ": chat_template: expected a text, or a list with an entry named default");
}

jinja::Dict special_tokens(const json& config) {
  jinja::Dict out;
  for (const auto& [key, value] : config.items()) {
    if (!key.ends_with("_token")) continue;
    const json& content = value.is_object() && value.contains("content") ? value["content"] : value;
    if (content.is_string()) out.emplace_back(key, Value::string(content.get<std::string>()));
  }
  return out;
}

Value part_value(const ContentPart& part) {
  auto type = [](const char* name) { return std::pair<std::string, Value>("type", Value::string(name)); };
  if (part.kind == ContentPart::Kind::kImage) return Value::dict({type("image")});
  if (part.kind == ContentPart::Kind::kVideo) return Value::dict({type("video")});
  return Value::dict({type("text"), {"text", Value::string(replace_invalid_utf8(part.text))}});
}

Value message_value(const Message& message) {
  bool only_text = std::all_of(message.content.begin(), message.content.end(),
                               [](const ContentPart& p) { return p.kind == ContentPart::Kind::kText; });
  std::string text;
  jinja::List parts;
  for (const ContentPart& part : message.content) {
    if (only_text)
      text += part.text;
    else
      parts.push_back(part_value(part));
  }
  Value content = only_text ? Value::string(replace_invalid_utf8(text)) : Value::list(std::move(parts));
  jinja::Dict entries{{"role", Value::string(replace_invalid_utf8(message.role))},
                      {"content", std::move(content)}};
  if (!message.reasoning.empty())
    entries.emplace_back("reasoning_content", Value::string(replace_invalid_utf8(message.reasoning)));
  if (!message.tool_calls.empty())
    entries.emplace_back("tool_calls", jinja::value_of_json(message.tool_calls));
  return Value::dict(std::move(entries));
}

}  // namespace

struct ChatTemplate::Impl {
  std::string where;
  std::optional<jinja::Template> parsed;
  jinja::Dict special_tokens;
};

Result<ChatTemplate> ChatTemplate::from_source(std::string_view source, const std::string& where) {
  auto impl = std::make_shared<Impl>();
  impl->where = where;
  auto parsed = jinja::Template::parse(source);
  if (!parsed.ok()) return parsed.status().in(where);
  impl->parsed = *std::move(parsed);
  ChatTemplate out;
  out.impl_ = std::move(impl);
  return out;
}

Result<ChatTemplate> ChatTemplate::from_folder(const std::string& folder) {
  namespace fs = std::filesystem;
  auto impl = std::make_shared<Impl>();
  impl->where = folder;
  std::optional<std::string> source;
  std::error_code error;
  if (fs::path path = fs::path(folder) / "chat_template.jinja"; fs::exists(path, error)) {
    SLIM_ASSIGN(source, read_file(path));
    impl->where = path.string();
  }
  for (const char* name : {"chat_template.json", "tokenizer_config.json"}) {
    fs::path path = fs::path(folder) / name;
    if (!fs::exists(path, error)) continue;
    SLIM_ASSIGN(json file, read_json(path));
    impl->special_tokens = special_tokens(file);
    if (source) continue;
    SLIM_ASSIGN(source, template_of(file, path.string()));
    if (source) impl->where = path.string() + ": chat_template";
  }
  if (source) {
    auto parsed = jinja::Template::parse(*source);
    if (!parsed.ok()) return parsed.status().in(impl->where);
    impl->parsed = *std::move(parsed);
  }
  ChatTemplate out;
  out.impl_ = std::move(impl);
  return out;
}

bool ChatTemplate::exists() const { return impl_->parsed.has_value(); }

Result<std::string> ChatTemplate::render(std::span<const Message> messages, bool add_generation_prompt,
                                         const std::string& tools) const {
  if (!exists())
    return Status(Code::kNotFound,
                  impl_->where + ": no chat template; add chat_template.jinja or use data without messages");
  jinja::List list;
  for (const Message& message : messages) list.push_back(message_value(message));
  jinja::Dict globals = impl_->special_tokens;
  globals.emplace_back("messages", Value::list(std::move(list)));
  globals.emplace_back("tools", tools.empty() ? Value::none() : jinja::value_of_json(tools));
  globals.emplace_back("documents", Value::none());
  globals.emplace_back("add_generation_prompt", Value::boolean(add_generation_prompt));
  auto out = impl_->parsed->render(globals);
  if (!out.ok()) return out.status().in(impl_->where);
  return out;
}

}  // namespace slim::model
