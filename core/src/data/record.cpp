#include "data/record.h"
#include "util/text.h"

#include <algorithm>
#include <array>
#include <cstddef>
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
constexpr Names kImages = {"images", "image", "img_path", "image_path"};
constexpr Names kMessages = {"messages"};
constexpr Names kConversations = {"conversations"};
constexpr Names kQuestion = {"question", "query"};
constexpr Names kAnswer = {"answer", "answers", "label"};
constexpr Names kInstruction = {"instruction"};
constexpr Names kInput = {"input"};
constexpr Names kInstructionOrInput = {"instruction", "input"};
constexpr Names kOutput = {"output"};
constexpr Names kText = {"text"};
constexpr std::array<Names, 5> kTextKeys = {kMessages, kConversations, kQuestion, kInstructionOrInput, kText};
constexpr std::array<Names, 3> kOtherKeys = {kImages, kAnswer, kOutput};
constexpr const char* kExpectedKeys =
    "messages, conversations, question (or query), instruction, input or text";

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

Result<std::string> role_of(const std::string& name) {
  static constexpr std::array<std::pair<std::string_view, std::string_view>, 8> kRoles{
      {{"user", "user"},
       {"assistant", "assistant"},
       {"system", "system"},
       {"tool", "tool"},
       {"human", "user"},
       {"gpt", "assistant"},
       {"bot", "assistant"},
       {"model", "assistant"}}};
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
  RecordParser(const Json& record, const MediaRoot& root) : record_(record), root_(root) {}

  Result<Document> parse() {
    if (const Json* images = member(record_, kImages)) SLIM_TRY(read_images(*images));
    Document document;
    SLIM_TRY(read_text(document));
    SLIM_TRY(place_unused_images(document));
    return document;
  }

 private:
  Status read_text(Document& document) {
    if (const Json* turns = member(record_, kMessages)) return read_turns(*turns, "messages", document);
    if (const Json* turns = member(record_, kConversations))
      return read_turns(*turns, "conversations", document);
    if (const Json* question = member(record_, kQuestion)) {
      return read_pair(*question, member(record_, kAnswer), document);
    }
    if (const Json* input = member(record_, kInstructionOrInput)) {
      return read_pair(*input, member(record_, kOutput), document);
    }
    if (const Json* text = member(record_, kText)) {
      SLIM_ASSIGN(document.text, text_of(*text, "text"));
      if (document.text.empty()) return malformed("'text' is empty");
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
    const Json* role = member(turn, {"role", "from"});
    const Json* content = member(turn, {"content", "value"});
    if (!role || !role->is_string()) return malformed("no text under 'role' (or 'from')");
    if (!content) return malformed("no 'content' (or 'value')");
    Message message;
    SLIM_ASSIGN(message.role, role_of(role->get_ref<const std::string&>()));
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
    if (name == "image" || name == "image_url") {
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

  const Json& record_;
  const MediaRoot& root_;
  std::vector<ContentPart> images_;
  size_t used_ = 0;
};

}  // namespace

Result<Document> parse_record(std::string_view json, const MediaRoot& root) {
  SLIM_ASSIGN(const Json record, parse_object(json));
  return RecordParser(record, root).parse();
}

Result<Document> parse_row(std::span<const uint8_t> cbor, const MediaRoot& root) {
  DepthCheck depth;
  if (!Json::sax_parse(cbor.begin(), cbor.end(), &depth, Json::input_format_t::cbor)) return no_row();
  try {  // lengths that no container can have are thrown whatever allow_exceptions says
    const Json record =
        Json::from_cbor(cbor.begin(), cbor.end(), /*strict=*/true, /*allow_exceptions=*/false);
    if (!record.is_object()) return no_row();
    return RecordParser(record, root).parse();
  } catch (const Json::exception&) {
    return no_row();
  }
}

Result<std::vector<bool>> wanted_columns(const std::vector<std::string>& columns) {
  std::vector<bool> wanted;
  bool any_text = false;
  for (const std::string& column : columns) {
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
                   (found.empty() ? "none" : found) + "; rename the column");
}

}  // namespace slim
