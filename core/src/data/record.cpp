#include "data/record.h"
#include "util/text.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <deque>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

namespace slim {
namespace {

using Json = nlohmann::json;
constexpr int kMaxDepth = 64;
constexpr std::string_view kImageTag = "<image>";

/// The keys that a record may have; of several names for one thing the first that is there counts.
using Names = std::initializer_list<const char*>;
constexpr Names kImages = {"images", "image", "img_path", "image_path", "file_name"};
constexpr Names kTurns = {"messages", "conversations", "conversation"};
constexpr Names kQuestion = {"question", "query", "prompt"};
constexpr Names kAnswer = {"answer", "answers", "label", "response", "output", "completion"};
constexpr Names kInstruction = {"instruction"};
constexpr Names kInput = {"input", "context"};
constexpr Names kInstructionOrInput = {"instruction", "input"};
constexpr Names kText = {"text", "content", "applied_message"};
constexpr Names kCaption = {"caption", "captions", "sentence"};
constexpr Names kSystem = {"system", "system_prompt"};
constexpr Names kHistory = {"history"};
constexpr Names kTools = {"tools"};
constexpr Names kReasoning = {"reasoning_content", "reasoning"};
constexpr Names kToolCalls = {"tool_calls"};
constexpr Names kRole = {"role", "from"};
constexpr Names kContent = {"content", "value"};
constexpr std::array<Names, 5> kTextKeys = {kTurns, kQuestion, kInstructionOrInput, kText, kCaption};
constexpr std::array<Names, 7> kOtherKeys = {kImages, kAnswer, kInput, kSystem, kHistory, kTools, kReasoning};
constexpr std::array<Names, 4> kTurnKeys = {kRole, kContent, kReasoning, kToolCalls};
constexpr const char* kExpectedKeys =
    "messages, conversations, question (or query, prompt), instruction, input, text or caption";
constexpr std::string_view kImagePrompt = "Describe this image in detail.";

bool names_any(const auto& lists, std::string_view key) {
  return std::any_of(lists.begin(), lists.end(),
                     [&](Names names) { return std::find(names.begin(), names.end(), key) != names.end(); });
}

Status malformed(std::string message) { return Status(Code::kCorrupt, std::move(message)); }

/// The parser keeps its own stack, but what walks the value afterwards may recurse.
bool nested_too_deep(std::string_view json) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < json.size(); ++i) {
    const char c = json[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxDepth) return true;
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return false;
}

Result<Json> parse_object(std::string_view text) {
  if (nested_too_deep(text))
    return malformed("JSON nested deeper than " + std::to_string(kMaxDepth) + " levels");
  try {
    Json json = Json::parse(text);
    if (!json.is_object()) return malformed(std::string("expected a JSON object, found ") + json.type_name());
    return json;
  } catch (const Json::parse_error& error) {
    return malformed("malformed JSON at byte " + std::to_string(error.byte) + "; expected one object");
  } catch (const Json::out_of_range&) {  // of numbers alone
    return malformed("JSON with a number that no double can hold");
  }
}

/// JSON that a record holds as a text; discarded if it is none, or nested too deep.
Json parse_leniently(const std::string& text) {
  return nested_too_deep(text) ? Json(Json::value_t::discarded)
                               : Json::parse(text, nullptr, /*allow_exceptions=*/false);
}

/// Stops the parser of CBOR, which recurses, at kMaxDepth.
class DepthCheck final : public nlohmann::json_sax<Json> {
 public:
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool key(string_t&) override { return true; }
  bool start_object(std::size_t) override { return ++depth_ <= kMaxDepth; }
  bool start_array(std::size_t) override { return ++depth_ <= kMaxDepth; }
  bool end_object() override { return --depth_ >= 0; }
  bool end_array() override { return --depth_ >= 0; }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception&) override {
    return false;
  }

 private:
  int depth_ = 0;
};

/// False for records that ToolTexts need not read: most of them, and those with images are long.
bool names_tools(std::string_view record) {
  constexpr std::string_view kKeys = "tool";  // "tools", "tool_calls"
  return ::memmem(record.data(), record.size(), kKeys.data(), kKeys.size()) != nullptr;
}

/// Writes the functions of a record as they stand there, keys in their order: `tools`, and `tool_calls` turn by turn. Prompts depend on the order,
/// which Json does not keep.
class ToolTexts final : public nlohmann::json_sax<Json> {
 public:
  std::string tools;
  std::deque<std::string> calls;

  bool null() override { return value("null"); }
  bool boolean(bool v) override { return value(v ? "true" : "false"); }
  bool number_integer(number_integer_t v) override { return value(std::to_string(v)); }
  bool number_unsigned(number_unsigned_t v) override { return value(std::to_string(v)); }
  bool number_float(number_float_t v, const string_t& text) override {
    return value(text.empty() ? Json(v).dump() : text);
  }
  bool string(string_t& v) override { return value(quoted(v)); }
  bool binary(binary_t&) override { return value("null"); }
  bool key(string_t& name) override {
    if (into_)
      write(quoted(name) + ": ");
    else
      wanted_ = name == "tools" && depth_ == 1 ? Wanted::kTools
                : name == "tool_calls"         ? Wanted::kCalls
                                               : Wanted::kNothing;
    after_key_ = true;
    return true;
  }
  bool start_object(std::size_t) override { return open("{"); }
  bool start_array(std::size_t) override { return open("["); }
  bool end_object() override { return close("}"); }
  bool end_array() override { return close("]"); }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception&) override {
    return false;
  }

 private:
  enum class Wanted : uint8_t { kNothing, kTools, kCalls };
  static std::string quoted(const std::string& text) {
    return Json(text).dump(-1, ' ', false, Json::error_handler_t::replace);
  }
  void write(const std::string& text) {
    if (!after_key_ && !text_.ends_with('[') && !text_.ends_with('{') && text != "]" && text != "}")
      text_ += ", ";
    text_ += text;
  }
  bool value(const std::string& text) {
    if (into_) write(text);
    wanted_ = into_ ? wanted_ : Wanted::kNothing;
    after_key_ = false;
    return true;
  }
  bool open(const char* bracket) {
    ++depth_;
    if (!into_ && wanted_ != Wanted::kNothing && *bracket == '[') {
      into_ = true;
      begun_ = depth_;
      text_.clear();
      after_key_ = true;
    }
    if (into_) write(bracket);
    wanted_ = into_ ? wanted_ : Wanted::kNothing;
    after_key_ = false;
    return true;
  }
  bool close(const char* bracket) {
    if (into_) text_ += bracket;
    after_key_ = false;
    if (into_ && depth_ == begun_) {
      into_ = false;
      if (wanted_ == Wanted::kTools)
        tools = text_;
      else
        calls.push_back(text_);
      wanted_ = Wanted::kNothing;
    }
    --depth_;
    return true;
  }

  int depth_ = 0, begun_ = 0;
  bool into_ = false, after_key_ = false;
  Wanted wanted_ = Wanted::kNothing;
  std::string text_;
};

Status no_row() { return malformed("the reader of tables gave no CBOR map"); }

/// The first of these members that is there and not null.
const Json* member(const Json& object, Names names) {
  for (const char* name : names) {
    const auto found = object.find(name);
    if (found != object.end() && !found->is_null()) return &*found;
  }
  return nullptr;
}

Result<std::string> text_of(const Json& json, std::string_view what) {
  if (json.is_string()) return json.get<std::string>();
  if (json.is_number()) return json.dump();
  if (json.is_array() && !json.empty()) return text_of(json.front(), what);
  return malformed("'" + std::string(what) + "': expected text, found " + (json.empty() ? "empty " : "") +
                   json.type_name());
}

/// The role of turns that call functions, in ShareGPT's way: their text is one call as JSON.
constexpr std::string_view kFunctionCall = "function_call";

Result<std::string> role_of(const std::string& name) {
  static constexpr std::array<std::pair<std::string_view, std::string_view>, 14> kRoles{
      {{"user", "user"},
       {"assistant", "assistant"},
       {"system", "system"},
       {"developer", "system"},
       {"tool", "tool"},
       {"function", "tool"},
       {"observation", "tool"},
       {"human", "user"},
       {"gpt", "assistant"},
       {"chatgpt", "assistant"},
       {"bot", "assistant"},
       {"model", "assistant"},
       {"ai", "assistant"},
       {kFunctionCall, "assistant"}}};
  const auto found =
      std::find_if(kRoles.begin(), kRoles.end(), [&](const auto& role) { return role.first == name; });
  if (found == kRoles.end())
    return malformed("unknown role '" + cut_text(name, 40) + "'; expected user, assistant, system or tool");
  return std::string(found->second);
}

ContentPart text_part(std::string text) { return {ContentPart::Kind::kText, std::move(text), {}, {}}; }

ContentPart image_part(Media media) {
  ContentPart part{ContentPart::Kind::kImage, {}, {}, std::move(media.bytes)};
  if (!media.file.empty()) part.files.push_back(std::move(media.file));
  return part;
}

/// Turns one object into a Document. Images that stand beside the text are handed out in order.
class RecordParser {
 public:
  RecordParser(Json record, ToolTexts tools, const RecordOptions& options, UnreadKeys* unread)
      : record_(std::move(record)),
        tools_(std::move(tools)),
        options_(options),
        root_(options.root),
        unread_(unread) {}

  Result<Document> parse() {
    if (const Json* images = member(record_, kImages)) SLIM_TRY(read_images(*images));
    Document document;
    SLIM_TRY(read_text(document));
    SLIM_TRY(read_surroundings(document));
    SLIM_TRY(place_unused_images(document));
    count_unread(record_, "", [](const std::string& key) {
      return names_any(kTextKeys, key) || names_any(kOtherKeys, key);
    });
    return document;
  }

 private:
  Status read_text(Document& document) {
    for (const char* key : kTurns) {
      if (const Json* turns = member(record_, {key})) return read_turns(*turns, key, document);
    }
    const Json* question = member(record_, kQuestion);
    if (question && question->is_array() && !question->empty() && question->front().is_object())
      return read_turns(*question, "prompt", document);
    if (!question) question = member(record_, kInstructionOrInput);
    if (question) return read_pair(*question, member(record_, kAnswer), document);
    const Json* text = member(record_, kText);
    if (!text) text = member(record_, kCaption);
    if (text && !images_.empty()) return read_caption(*text, document);
    if (text) {
      SLIM_ASSIGN(document.text, text_of(*text, "text"));
      return {};
    }
    return malformed(std::string("expected ") + kExpectedKeys + "; found " + keys());
  }

  std::string keys() const {
    std::string list;
    for (const auto& [key, value] : record_.items()) {
      if (list.size() > 200) return list + ", ...";
      list += (list.empty() ? "'" : ", '") + cut_text(key, 40) + "'";
    }
    return list.empty() ? "no key" : list;
  }

  /// An image with a text that is no question: the answer to the usual one.
  Status read_caption(const Json& caption, Document& document) {
    SLIM_ASSIGN(std::string answer, text_of(caption, "caption"));
    const std::string_view prompt =
        options_.image_prompt.empty() ? kImagePrompt : std::string_view(options_.image_prompt);
    document.messages.push_back({"user", {text_part(std::string(prompt))}});
    document.messages.push_back({"assistant", {text_part(std::move(answer))}});
    return {};
  }

  /// What stands beside the turns: a system prompt, earlier turns, functions, what the assistant thought.
  Status read_surroundings(Document& document) {
    if (document.messages.empty()) return {};
    auto& messages = document.messages;
    if (const Json* history = member(record_, kHistory)) SLIM_TRY(read_history(*history, messages));
    if (const Json* system = member(record_, kSystem); system && messages.front().role != "system") {
      SLIM_ASSIGN(std::string text, text_of(*system, "system"));
      if (!text.empty()) messages.insert(messages.begin(), Message{"system", {text_part(std::move(text))}});
    }
    if (const Json* tools = member(record_, kTools)) {
      SLIM_ASSIGN(document.tools, functions_of(*tools));
    }
    const Json* reasoning = member(record_, kReasoning);
    if (reasoning && messages.back().role == "assistant") {
      SLIM_ASSIGN(messages.back().reasoning, text_of(*reasoning, "reasoning_content"));
    }
    return {};
  }

  /// [[question, answer], ...] before the last question.
  static Status read_history(const Json& history, std::vector<Message>& messages) {
    std::vector<Message> earlier;
    for (const Json& pair : history.is_array() ? history : Json::array()) {
      if (!pair.is_array() || pair.size() != 2)
        return malformed("'history': expected a list of [question, answer]");
      SLIM_ASSIGN(std::string question, text_of(pair[0], "history"));
      SLIM_ASSIGN(std::string answer, text_of(pair[1], "history"));
      earlier.push_back({"user", {text_part(std::move(question))}});
      earlier.push_back({"assistant", {text_part(std::move(answer))}});
    }
    messages.insert(messages.begin(), std::make_move_iterator(earlier.begin()),
                    std::make_move_iterator(earlier.end()));
    return {};
  }

  /// A list of functions as JSON; empty for none. Some sets hold the list as a text.
  Result<std::string> functions_of(const Json& list) const {
    if (list.is_array()) return list.empty() ? std::string() : tools_.tools;
    if (!list.is_string()) return malformed("'tools': expected a list of functions");
    const std::string& text = list.get_ref<const std::string&>();
    const Json parsed = parse_leniently(text);
    if (!parsed.is_array()) return malformed("'tools': expected a list of functions, found other text");
    return parsed.empty() ? std::string() : text;
  }

  /// Keys of an object that nobody reads; null says nothing.
  template <class Known>
  void count_unread(const Json& object, const char* prefix, const Known& known) {
    if (!unread_) return;
    for (const auto& [key, value] : object.items()) {
      if (!value.is_null() && !known(key)) ++(*unread_)[prefix + cut_text(key, 40)];
    }
  }

  Status read_pair(const Json& question, const Json* answer, Document& document) {
    SLIM_ASSIGN(std::string text, text_of(question, "question"));
    const Json* input = member(record_, kInput);
    if (member(record_, kInstruction) && input) {
      SLIM_ASSIGN(const std::string more, text_of(*input, "input"));
      if (!more.empty()) text += "\n\n" + more;
    }
    Message user{"user", {}};
    SLIM_TRY(append_text(text, !images_.empty(), user.content));
    document.messages.push_back(std::move(user));
    if (answer) {
      SLIM_ASSIGN(std::string reply, text_of(*answer, "answer"));
      document.messages.push_back({"assistant", {text_part(std::move(reply))}});
    }
    return {};
  }

  Status read_turns(const Json& turns, const char* key, Document& document) {
    if (!turns.is_array() || turns.empty()) {
      return malformed(std::string("'") + key + "': expected a list of turns, found " +
                       (turns.empty() ? "empty " : "") + turns.type_name());
    }
    for (size_t i = 0; i < turns.size(); ++i) {
      Result<Message> message = read_turn(turns[i]);
      if (!message.ok()) return message.status().in(std::string(key) + "[" + std::to_string(i) + "]");
      document.messages.push_back(*std::move(message));
    }
    return {};
  }

  Result<Message> read_turn(const Json& turn) {
    if (!turn.is_object()) return malformed(std::string("expected an object, found ") + turn.type_name());
    const Json* role = member(turn, kRole);
    const Json* content = member(turn, kContent);
    if (!role || !role->is_string()) return malformed("no text under 'role' (or 'from')");
    Message message;
    SLIM_ASSIGN(message.role, role_of(role->get_ref<const std::string&>()));
    SLIM_TRY(read_thoughts(turn, message));
    count_unread(turn, "messages.", [](const std::string& key) { return names_any(kTurnKeys, key); });
    if (*role == kFunctionCall && content && content->is_string() &&
        read_call(content->get_ref<const std::string&>(), message))
      return message;
    if (!content && !message.tool_calls.empty()) return message;
    if (!content) return malformed("no 'content' (or 'value')");
    if (content->is_string()) {
      const bool tags = !images_.empty() || member(turn, {"value"});
      SLIM_TRY(append_text(content->get_ref<const std::string&>(), tags, message.content));
    } else if (content->is_array()) {
      for (const Json& part : *content) SLIM_TRY(append_part(part, message.content));
    } else {
      return malformed(std::string("'content': expected text or a list of parts, found ") +
                       content->type_name());
    }
    return message;
  }

  Status read_thoughts(const Json& turn, Message& message) {
    if (const Json* reasoning = member(turn, kReasoning)) {
      SLIM_ASSIGN(message.reasoning, text_of(*reasoning, "reasoning_content"));
    }
    const Json* calls = member(turn, kToolCalls);
    if (!calls) return {};
    if (!calls->is_array())
      return malformed(std::string("'tool_calls': expected a list, found ") + calls->type_name());
    if (tools_.calls.empty()) return malformed("'tool_calls' stand where no turn is");
    if (!calls->empty()) message.tool_calls = std::move(tools_.calls.front());
    tools_.calls.pop_front();
    return {};
  }

  /// {"name", "arguments"} as the call of a function; false if the text is something else.
  static bool read_call(const std::string& text, Message& message) {
    const Json call = parse_leniently(text);
    if (!call.is_object() || !call.contains("name")) return false;
    message.tool_calls = R"([{"type": "function", "function": )" + text + "}]";
    return true;
  }

  Status append_part(const Json& part, std::vector<ContentPart>& content) {
    const Json* type = part.is_object() ? member(part, {"type"}) : nullptr;
    if (!type || !type->is_string())
      return malformed("a part of 'content' has no 'type'; expected text, image or video");
    const std::string& name = type->get_ref<const std::string&>();
    if (name == "text") {
      const Json* text = member(part, {"text"});
      if (!text || !text->is_string()) return malformed("a text part has no 'text'");
      return append_text(text->get_ref<const std::string&>(), !images_.empty(), content);
    }
    if (name == "image" || name == "image_url" || name == "input_image") {
      const Json* source = member(part, {"image", "image_url", "url", "path"});
      if (!source) return append_next_image(content);
      SLIM_ASSIGN(Media media, read_media(*source));
      content.push_back(image_part(std::move(media)));
      return {};
    }
    if (name == "video" || name == "video_url")
      return append_video(member(part, {"video", "video_url"}), content);
    return malformed("part of unknown type '" + cut_text(name, 40) +
                     "'; expected text, image, image_url or video");
  }

  Status append_video(const Json* frames, std::vector<ContentPart>& content) {
    if (!frames || !frames->is_array() || frames->empty()) {
      return Status(Code::kUnsupported,
                    "video files are not decoded; expected 'video': a list of its frames as image files");
    }
    ContentPart part{ContentPart::Kind::kVideo, {}, {}, {}};
    for (const Json& frame : *frames) {
      SLIM_ASSIGN(Media media, read_media(frame));
      if (media.file.empty())
        return Status(Code::kUnsupported, "a video frame is inlined; expected the path of an image");
      part.files.push_back(std::move(media.file));
    }
    content.push_back(std::move(part));
    return {};
  }

  /// `tags`: each "<image>" stands for the next image.
  Status append_text(std::string_view text, bool tags, std::vector<ContentPart>& content) {
    for (size_t tag = tags ? text.find(kImageTag) : std::string_view::npos; tag != std::string_view::npos;
         tag = text.find(kImageTag)) {
      if (tag > 0) content.push_back(text_part(std::string(text.substr(0, tag))));
      SLIM_TRY(append_next_image(content));
      text.remove_prefix(tag + kImageTag.size());
    }
    if (!text.empty() || content.empty()) content.push_back(text_part(std::string(text)));
    return {};
  }

  Status append_next_image(std::vector<ContentPart>& content) {
    if (images_.empty())
      return malformed("a place for an image, but no image: neither in it nor in 'images' (or 'image')");
    if (used_ == images_.size()) {
      return malformed("the text has more places for images than 'images' (or 'image') holds: " +
                       std::to_string(used_));
    }
    content.push_back(std::move(images_[used_++]));
    return {};
  }

  Status place_unused_images(Document& document) {
    if (used_ == images_.size()) return {};
    const auto user = std::find_if(document.messages.begin(), document.messages.end(),
                                   [](const Message& message) { return message.role == "user"; });
    if (user == document.messages.end()) return malformed("images without a user's message to stand in");
    user->content.insert(user->content.begin(),
                         std::make_move_iterator(images_.begin() + static_cast<ptrdiff_t>(used_)),
                         std::make_move_iterator(images_.end()));
    return {};
  }

  Status read_images(const Json& images) {
    if (!images.is_array()) {
      SLIM_ASSIGN(Media media, read_media(images));
      images_.push_back(image_part(std::move(media)));
      return {};
    }
    for (const Json& image : images) {
      SLIM_ASSIGN(Media media, read_media(image));
      images_.push_back(image_part(std::move(media)));
    }
    return {};
  }

  Result<Media> read_media(const Json& source) {
    if (source.is_binary()) return inlined(source.get_binary());
    if (source.is_string()) return locate_media(source.get_ref<const std::string&>(), root_);
    if (source.is_object()) {
      const Json* bytes = member(source, {"bytes"});
      if (bytes && bytes->is_binary()) return inlined(bytes->get_binary());
      if (bytes && bytes->is_string()) {
        SLIM_ASSIGN(std::string decoded, decode_base64(bytes->get_ref<const std::string&>()));
        return Media{{}, std::move(decoded)};
      }
      const Json* path = member(source, {"url", "path"});
      if (path && path->is_string()) return locate_media(path->get_ref<const std::string&>(), root_);
    }
    return malformed(std::string("image: expected a path, a URL or {bytes, path}, found ") +
                     source.type_name());
  }

  static Result<Media> inlined(const Json::binary_t& bytes) {
    if (bytes.empty()) return malformed("image without a byte in it");
    return Media{{}, std::string(bytes.begin(), bytes.end())};
  }

  const Json record_;
  ToolTexts tools_;
  const RecordOptions& options_;
  const MediaRoot& root_;
  UnreadKeys* unread_;
  std::vector<ContentPart> images_;
  size_t used_ = 0;
};

/// With the names that are read here.
Json renamed(Json record, const RecordOptions& options) {
  for (const auto& [theirs, ours] : options.columns) {
    const auto found = record.find(theirs);
    if (found == record.end()) continue;
    Json value = std::move(*found);
    record.erase(found);
    record[ours] = std::move(value);
  }
  return record;
}

}  // namespace

Result<Document> parse_record(std::string_view json, const RecordOptions& options, UnreadKeys* unread) {
  SLIM_ASSIGN(Json record, parse_object(json));
  ToolTexts tools;
  if (names_tools(json)) Json::sax_parse(json, &tools);
  return RecordParser(renamed(std::move(record), options), std::move(tools), options, unread).parse();
}

Result<Document> parse_row(std::span<const uint8_t> cbor, const RecordOptions& options, UnreadKeys* unread) {
  DepthCheck depth;
  if (!Json::sax_parse(cbor.begin(), cbor.end(), &depth, Json::input_format_t::cbor)) return no_row();
  try {  // lengths that no container can have are thrown whatever allow_exceptions says
    Json record = Json::from_cbor(cbor.begin(), cbor.end(), /*strict=*/true, /*allow_exceptions=*/false);
    if (!record.is_object()) return no_row();
    ToolTexts tools;
    if (names_tools({reinterpret_cast<const char*>(cbor.data()), cbor.size()}))
      Json::sax_parse(cbor.begin(), cbor.end(), &tools, Json::input_format_t::cbor);
    return RecordParser(renamed(std::move(record), options), std::move(tools), options, unread).parse();
  } catch (const Json::exception&) {
    return no_row();
  }
}

Result<std::vector<bool>> wanted_columns(const std::vector<std::string>& columns,
                                         const RecordOptions& options) {
  std::vector<bool> wanted;
  bool any_text = false;
  for (const std::string& name : columns) {
    const auto other = options.columns.find(name);
    const std::string& column = other == options.columns.end() ? name : other->second;
    const bool text = names_any(kTextKeys, column);
    any_text |= text;
    wanted.push_back(text || names_any(kOtherKeys, column));
  }
  if (any_text) return wanted;
  std::string found;
  for (const std::string& column : columns) {
    if (found.size() < 200) found += (found.empty() ? "'" : ", '") + cut_text(column, 40) + "'";
  }
  return malformed("expected a column " + std::string(kExpectedKeys) + "; found " +
                   (found.empty() ? "none" : found) +
                   "; say which is which: --set dataset.columns=THEIRS=text");
}

}  // namespace slim
