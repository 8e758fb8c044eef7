#include "common/models/text_adapter.hpp"

#include <ATen/ATen.h>

#include "common/chat/chat.hpp"
#include "common/input/multimodal_processor.hpp"
#include "common/layers/attention.hpp"
#include "common/text/tokenizer.hpp"

namespace slim::model {
namespace {

class TextProcessor final : public Processor {
 public:
  TextProcessor(Tokenizer tokenizer, ChatTemplate chat, std::vector<int64_t> stops)
      : tokenizer_(std::move(tokenizer)), chat_(std::move(chat)), stops_(std::move(stops)) {}

  Result<Sample> encode(const Document& document, const EncodeOptions& options) const override {
    auto ids = encode_ids(document, options);
    if (!ids.ok()) return ids.status().in(document.origin);
    Sample sample;
    sample.origin = document.origin;
    if (options.max_tokens > 0 && static_cast<int64_t>(ids->size()) > options.max_tokens) {
      ids->resize(options.max_tokens);
    }
    sample.text_tokens = static_cast<int64_t>(ids->size());
    sample.tensors["input_ids"] = index_tensor(*ids);
    return sample;
  }
  Result<std::vector<int64_t>> tokenize(std::string_view text) const override {
    return tokenizer_.encode(text, /*add_special=*/false);
  }
  Result<std::string> decode(std::span<const int64_t> ids) const override { return tokenizer_.decode(ids); }
  std::vector<int64_t> stop_tokens() const override { return stops_; }

 private:
  Result<std::vector<int64_t>> encode_ids(const Document& document, const EncodeOptions& options) const {
    if (document.messages.empty()) return tokenizer_.encode(document.text);
    for (const auto& message : document.messages) {
      for (const auto& part : message.content) {
        if (part.kind == ContentPart::Kind::kText) continue;
        return Status(Code::kUnsupported,
                      "it has an image or a video, and the model takes no images; give it text samples");
      }
    }
    SLIM_ASSIGN(const std::string text, chat_.render(document.messages, options.generation_prompt, document.tools));
    // Chat templates write the special tokens themselves.
    return tokenizer_.encode(text, /*add_special=*/false);
  }

  const Tokenizer tokenizer_;
  const ChatTemplate chat_;
  const std::vector<int64_t> stops_;
};

}  // namespace

Result<std::unique_ptr<Processor>> make_text_processor(const std::string& folder,
                                                       const std::string& end_of_turn) {
  SLIM_ASSIGN(auto tokenizer, Tokenizer::from_folder(folder));
  SLIM_ASSIGN(auto chat, ChatTemplate::from_folder(folder));
  SLIM_ASSIGN(auto stops, read_stop_tokens(folder, tokenizer, end_of_turn));
  return std::unique_ptr<Processor>(
      new TextProcessor(std::move(tokenizer), std::move(chat), std::move(stops)));
}

Result<std::unique_ptr<Processor>> TextAdapter::processor(const std::string& folder) const {
  return make_text_processor(folder, end_of_turn_);
}

Result<Carry> TextAdapter::begin(std::span<const Sample> samples, Exec& exec) {
  std::vector<at::Tensor> ids;
  std::vector<int64_t> lengths;
  for (const auto& sample : samples) {
    const auto found = sample.tensors.find("input_ids");
    if (found == sample.tensors.end() || found->second.numel() == 0) {
      return Status(Code::kInvalidArgument, sample.origin + ": has no tokens");
    }
    ids.push_back(found->second.flatten());
    lengths.push_back(ids.back().size(0));
  }
  return decoder_->start(at::cat(ids), index_tensor(lengths), exec);
}

Status TextAdapter::enter(std::string_view, Exec&, Carry&) { return {}; }

Status TextAdapter::forward(const BlockPlan& block, Exec& exec, Carry& carry) {
  decoder_->forward(block, exec, carry);
  return {};
}

Result<at::Tensor> TextAdapter::forward_region(const BlockPlan& block, RegionId region, Exec& exec,
                                               const Carry& carry, const at::Tensor& x) {
  return decoder_->region(block, region, exec, carry, x);
}

Result<Carry> TextAdapter::next(const Carry& previous, const at::Tensor& token_ids, Exec& exec) {
  return decoder_->next(previous, token_ids, exec);
}

}  // namespace slim::model
