#pragma once
#include <ATen/core/Tensor.h>

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "slim/dtype.hpp"
#include "slim/plan.hpp"
#include "slim/statistic.hpp"
#include "slim/status.hpp"

namespace slim {

// ---- data that enters a model -----------------------------------------------------------------------------------------

/// A piece of a message.
struct ContentPart {
  /// What the piece is.
  enum class Kind : uint8_t { kText, kImage, kVideo };
  Kind kind = Kind::kText;          ///< says which fields are used
  std::string text;                 ///< kText
  std::vector<std::string> files;   ///< kImage: one path; kVideo: a path per frame. Empty when `bytes` holds the image
  std::string bytes;                ///< an encoded image (JPEG, PNG, WebP)
};
/// One turn of a chat.
struct Message {
  std::string role;                  ///< "system", "user", "assistant"
  std::vector<ContentPart> content;  ///< in their order
  std::string reasoning = {};   ///< what the assistant thought before: templates' `reasoning_content`; empty: nothing
  std::string tool_calls = {};  ///< JSON: the list of functions that the assistant calls, as templates take it; empty: none
};
/// One sample: a chat, or a plain text without any template.
struct Document {
  std::vector<Message> messages;  ///< a chat
  std::string text;    ///< used when messages is empty
  std::string origin;  ///< "calib.jsonl:17", for messages to the user
  std::string tools = {};  ///< JSON: the list of functions that the assistant may call, as templates take it; empty: none
};

/// A Document as the model takes it. Always there: "input_ids" int64 [tokens]. The rest is the adapter's own
/// ("pixel_values" [patches, features], "image_grid_thw" [images, 3], ...).
struct Sample {
  TensorMap tensors;         ///< on the CPU
  std::string origin;        ///< "calib.jsonl:17", for messages to the user
  int64_t text_tokens = 0;   ///< of input_ids
  int64_t image_tokens = 0;  ///< of input_ids; both together are all
  bool downscaled = false;  ///< an image was made smaller to meet max_tokens
};

/// What Processor::encode may do with a document.
struct EncodeOptions {
  bool generation_prompt = false;  ///< end with the header of the assistant's turn
  int64_t max_tokens = 0;          ///< 0: no limit. Text is cut at the end; image tokens never in their middle
};

/// Tokenizer, chat format and image preprocessing of one checkpoint folder. Const calls may come from several threads.
class SLIM_API Processor {
 public:
  virtual ~Processor();
  /// kUnsupported: the model takes no samples of this kind (images for a text model); callers leave the sample out and count it.
  virtual Result<Sample> encode(const Document&, const EncodeOptions&) const = 0;
  /// Token ids of a text, special tokens inside it recognised, nothing added.
  virtual Result<std::vector<int64_t>> tokenize(std::string_view) const = 0;
  /// Text of token ids, special tokens left out.
  virtual Result<std::string> decode(std::span<const int64_t>) const = 0;
  /// Generation ends at these; the first one is appended to answers when their likelihood is scored.
  virtual std::vector<int64_t> stop_tokens() const = 0;
};

// ---- running a model --------------------------------------------------------------------------------------------------

/// Everything that flows from block to block for one batch: hidden states, rotary tables, features to inject later.
/// Opaque to the core but for these keys:
///   "hidden"   [tokens, features]: all sequences of the batch one after the other, without padding
///   "lengths"  int64 [sequences]: tokens of each sequence (the language stage); may differ per stage
///   "logit_rows" int64 [n], set by the core before the head stage: the rows of "hidden" to compute logits for
///   "logits"   [n, vocabulary] float, set by the head stage
using Carry = TensorMap;

/// Keys and values of earlier tokens, for generation; owned by the core, one per run of answers.
class SLIM_API KeyValueCache {
 public:
  virtual ~KeyValueCache();
  /// Appends `key`, `value` [tokens, heads, head_dim] of sequence `sequence` of block `block`, and returns all so far.
  virtual std::pair<at::Tensor, at::Tensor> extend(int32_t block, int64_t sequence, const at::Tensor& key,
                                                   const at::Tensor& value) = 0;
};

/// The adapter's only way to weights: the one place where statistics are collected, weights are replaced and activations
/// are fake-quantized. Used from one thread. Errors inside (a missing tensor, NaN) are thrown as slim::ExecError and become
/// the Status of the run.
class SLIM_API Exec {
 public:
  virtual ~Exec();
  /// y = x Wᵀ + b of a layer of the current block; x [..., in]. Computed in x's dtype: fp32 for routers that want it.
  virtual at::Tensor linear(LayerId, const at::Tensor& x) = 0;
  /// Shows a tensor that no linear reads to the statistics of a port; returns x.
  virtual at::Tensor tap(PortId, const at::Tensor& x) = 0;
  /// Marks x as the input of a region: forward() calls it once per region, so that the core can run the region again. x is the
  /// residual stream before the region's norm, so that it stays the same when a scale is folded into that norm.
  virtual void region_input(RegionId, const at::Tensor& x) = 0;
  /// A tensor by its full name in the checkpoint, in the compute dtype: a param of the current block, or a global.
  virtual at::Tensor param(std::string_view name) = 0;
  /// Rows of a 2-D tensor (embedding), without reading the rest: ids int64 [n] -> [n, features].
  virtual at::Tensor rows(std::string_view name, const at::Tensor& ids) = 0;
  /// Calibration policy: every expert computes every token (the router's weights still mix the outputs).
  virtual bool all_experts() const = 0;
  virtual KeyValueCache* cache() = 0;  ///< null outside generation
  virtual at::ScalarType dtype() const = 0;  ///< of activations
  virtual at::Device device() const = 0;     ///< of activations and weights
};

/// Thrown by Exec and by adapters inside a forward pass; caught by the core in one place.
struct SLIM_API ExecError : std::exception {
  explicit ExecError(Status s) : status(std::move(s)) {}  ///< `s` must be an error
  const char* what() const noexcept override { return status.message().c_str(); }  ///< the error's message
  Status status;  ///< what went wrong
};

/// A model architecture: its blocks, its forward pass, its prompt and image format. Never sees an algorithm or an output file.
/// plan() comes first and configures the instance; afterwards const and used from one thread, processor() results apart.
class SLIM_API ModelAdapter {
 public:
  virtual ~ModelAdapter();
  /// Pure data from config.json and the checkpoint's tensor shapes. Errors: a key missing in config.json, a tensor missing,
  /// of a wrong shape, or unknown to the architecture; each names it.
  virtual Result<ModelPlan> plan(std::string_view config_json, const std::map<std::string, TensorSpec>& tensors) = 0;
  /// Tokenizer and image processor from a checkpoint folder.
  virtual Result<std::unique_ptr<Processor>> processor(const std::string& folder) const = 0;
  /// Starts a batch: what the first block of the first stage needs, and in the carry what later stages need of the samples.
  /// A batch without images starts with an empty "hidden" [0, features] in the vision stage.
  virtual Result<Carry> begin(std::span<const Sample> samples, Exec&) = 0;
  /// Before the first block of every later stage ("language": merge vision features into token embeddings; "head").
  virtual Status enter(std::string_view stage, Exec&, Carry&) = 0;
  /// One block, in place.
  virtual Status forward(const BlockPlan&, Exec&, Carry&) = 0;
  /// The region's output for its input x, with what else it needs from the carry (rotary tables, lengths).
  virtual Result<at::Tensor> forward_region(const BlockPlan&, RegionId, Exec&, const Carry&, const at::Tensor& x) = 0;
  /// Generation: a carry at the entry of the language stage for one new token per sequence, continuing after `previous`
  /// (the carry at the end of the language stage of the step before). token_ids int64 [sequences].
  virtual Result<Carry> next(const Carry& previous, const at::Tensor& token_ids, Exec&) = 0;
};

}  // namespace slim
