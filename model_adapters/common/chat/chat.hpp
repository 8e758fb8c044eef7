#pragma once
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "slim/adapter.hpp"
#include "slim/status.hpp"

namespace slim::model {

/// The chat format of one checkpoint: its own chat template, run as transformers' apply_chat_template(tokenize=False) does.
/// Immutable; copies share the template and may be used from any thread.
class ChatTemplate {
 public:
  /// From the first of these files that has a template: chat_template.jinja, chat_template.json, tokenizer_config.json (the
  /// entry "default" where there is a list). The template sees the special tokens of tokenizer_config.json (bos_token, ...).
  /// A folder without template is no error here but in render(). Errors: files that cannot be read (kIo), broken JSON or
  /// templates (kCorrupt), syntax that is not supported (kUnsupported); each names the file.
  static Result<ChatTemplate> from_folder(const std::string& folder);
  /// A template alone; `where` leads every message.
  static Result<ChatTemplate> from_source(std::string_view source, const std::string& where);

  /// False for a folder without template.
  bool exists() const;
  /// The prompt. A message without images and videos is given to the template as one text, others as a list of parts
  /// ({"type": "image"}, {"type": "video"}, {"type": "text", "text": ...}); so an image becomes what the template writes
  /// for it, in Qwen's "<|vision_start|><|image_pad|><|vision_end|>". Errors: no template, or what the template says
  /// (kInvalidArgument), or see jinja::Template::render. `tools`: see Document::tools.
  Result<std::string> render(std::span<const Message> messages, bool add_generation_prompt,
                             const std::string& tools = "") const;

 private:
  struct Impl;
  std::shared_ptr<const Impl> impl_;
};

}  // namespace slim::model
