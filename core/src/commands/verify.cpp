#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <filesystem>

#include <nlohmann/json.hpp>

#include "checkpoint/checksums.h"
#include "commands/commands.h"
#include "commands/served_checks.h"
#include "engines/engine.h"
#include "model/model.h"
#include "plugin/guard.h"
#include "report/run_report.h"
#include "solve/block_context.h"
#include "util/strict_json.h"

namespace slim {
namespace {

/// Below this the noise of quantization is as loud as the weights: the layer is garbage, whatever the scheme.
constexpr double kLeastSignalToNoise =
    1.0;  // rounding to two bits leaves 2 dB; zeros leave 0, foreign codes less
constexpr size_t kProblemsShown = 10;

/// ||w||² / ||w - q||² in dB.
double signal_to_noise(const at::Tensor& weight, const at::Tensor& decoded) {
  const double noise = (weight - decoded).square().sum().item<double>();
  const double signal = weight.square().sum().item<double>();
  if (noise == 0) return 200;
  return 10 * std::log10(std::max(signal, 1e-30) / noise);
}

/// Compares a quantized checkpoint with its original, block by block. Scales that were folded along the adapter's edges are
/// found again from the norms (exactly) and from producers' rows (least squares), and then demanded of the consumers: a scale
/// that is missing on one side shows as noise.
class Verification {
 public:
  Verification(const VerifyConfig& config, PluginRegistry& registry, Progress& progress)
      : config_(config), registry_(registry), progress_(progress) {}

  Result<Report> run() {
    const c10::NoGradGuard no_grad;
    SLIM_TRY(check_bytes());
    auto model = Model::open(config_.model, "", registry_);
    if (!model.ok() && !problems_.empty()) problems_.push_back(model.status().message());
    if (!model.ok()) return problems_.empty() ? model.status() : failure();
    model_ = *std::move(model);
    if (!config_.reference.empty()) {
      SLIM_ASSIGN(reference_, Model::open(config_.reference, model_.adapter_id, registry_));
      SLIM_TRY(compare_plans());
    }
    if (!config_.engine.empty()) {
      SLIM_ASSIGN(const ServedCheckpoint served, served_checkpoint(model_));
      SLIM_ASSIGN(const auto problems, engine_problems(served, config_.engine, config_.tensor_parallel));
      problems_.insert(problems_.end(), problems.begin(), problems.end());
    }
    SLIM_TRY(check_served());
    progress_.begin("verifying", static_cast<int64_t>(model_.plan.blocks.size()));
    for (const BlockPlan& block : model_.plan.blocks) {
      SLIM_TRY(check_block(block));
      progress_.step(block.name);
      if (progress_.cancelled()) return Status(Code::kCancelled, "interrupted");
    }
    SLIM_TRY(check_floats_outside_blocks());
    if (reference_.weights) SLIM_TRY(check_globals());
    return report();
  }

 private:
  /// What needs no adapter: files that belong together, and the checksums that an output of slim carries.
  Status check_bytes() {
    std::error_code error;
    const bool folder = std::filesystem::is_directory(config_.model, error);
    if (folder) {
      SLIM_ASSIGN(checksums_, read_checksums(config_.model));
    }
    if (checksums_) {
      SLIM_ASSIGN(problems_, check_files(*checksums_, config_.model));
    }
    const auto checkpoint = Checkpoint::open(config_.model);
    if (!checkpoint.ok() && !folder) return checkpoint.status();
    if (!checkpoint.ok()) problems_.push_back(checkpoint.status().message());
    if (!checkpoint.ok()) return failure();
    return checksums_ ? check_tensors(**checkpoint) : Status{};
  }

  Status check_tensors(const Checkpoint& checkpoint) {
    for (const auto& [name, checksum] : checksums_->tensors) {
      if (!checkpoint.tensors().contains(name)) problems_.push_back(name + ": is missing");
    }
    progress_.begin("checking bytes", static_cast<int64_t>(checkpoint.tensors().size()));
    for (const auto& [name, spec] : checkpoint.tensors()) {
      const auto expected = checksums_->tensors.find(name);
      if (expected == checksums_->tensors.end()) {
        problems_.push_back(name + ": is not one of the tensors that were written");
      } else {
        SLIM_ASSIGN(const uint64_t found, tensor_checksum(checkpoint, name));
        if (found != expected->second)
          problems_.push_back(name + ": its bytes are not those that were written");
      }
      progress_.step(name);
      if (progress_.cancelled()) return {Code::kCancelled, "interrupted"};
    }
    return {};
  }

  /// All problems in one line.
  Status failure() const {
    std::string text = config_.model + ": " + std::to_string(problems_.size()) +
                       (problems_.size() == 1 ? " problem" : " problems");
    for (size_t i = 0; i < std::min(kProblemsShown, problems_.size()); ++i) text += "; " + problems_[i];
    return {Code::kVerification, text};
  }

  /// Both plans must describe the same model: the same layers (however they are stored), params and globals.
  Status compare_plans() {
    const size_t before = problems_.size();
    if (model_.plan.blocks.size() != reference_.plan.blocks.size()) {
      return {Code::kVerification, config_.model + " has " + std::to_string(model_.plan.blocks.size()) +
                                       " blocks, the reference " +
                                       std::to_string(reference_.plan.blocks.size())};
    }
    compare_sets(model_.plan.globals, reference_.plan.globals);
    compare_sets(model_.plan.beside, reference_.plan.beside);
    for (const BlockPlan& block : model_.plan.blocks) {
      const BlockPlan& other = reference_.plan.blocks[block.index];
      compare_sets(block.params, other.params);
      compare_sets(layer_names(block), layer_names(other));
    }
    return problems_.size() == before ? Status{} : failure();
  }

  static std::vector<std::string> layer_names(const BlockPlan& block) {
    std::vector<std::string> names;
    for (const Layer& layer : block.layers)
      names.push_back(layer.name + " " + shape_string({layer.out, layer.in}));
    return names;
  }

  void compare_sets(const std::vector<std::string>& ours, const std::vector<std::string>& theirs) {
    const std::set<std::string> mine(ours.begin(), ours.end()), other(theirs.begin(), theirs.end());
    for (const std::string& name : other) {
      if (!mine.contains(name)) problems_.push_back(name + ": missing in " + config_.model);
    }
    for (const std::string& name : mine) {
      if (!other.contains(name)) problems_.push_back(name + ": not in the reference");
    }
  }

  /// What engines make of the folder. Of files that carry checksums only what slim itself wrote: the rest is as the source had it.
  Status check_served() {
    SLIM_ASSIGN(const auto contradictions, model_.weights->contradictions(model_.plan));
    add(contradictions);
    if (checksums_) return {};
    SLIM_ASSIGN(const auto architectures, architecture_problems(model_));
    add(architectures);
    add(processor_problems(model_));
    return {};
  }
  void add(const std::vector<std::string>& lines) {
    problems_.insert(problems_.end(), lines.begin(), lines.end());
  }

  Status check_floats_outside_blocks() {
    for (const auto* names : {&model_.plan.globals, &model_.plan.beside}) {
      for (const std::string& name : *names) {
        SLIM_ASSIGN(const std::string problem, float_problem(model_.weights->checkpoint(), name));
        if (!problem.empty()) problems_.push_back(problem);
      }
    }
    return {};
  }

  Status check_values(const Layer& layer, const at::Tensor& weight) {
    const StoredLayer* stored = model_.weights->stored(layer.name);
    if (!at::isfinite(weight).all().item<bool>())
      problems_.push_back(layer.name + (stored ? ": decodes to NaN or Inf" : ": holds NaN or Inf"));
    if (!stored) return {};
    ++decoded_;
    if (weight.any().item<bool>()) return {};
    for (const std::string& name : stored->tensors) {
      if (name.find("scale") == std::string::npos) continue;
      SLIM_ASSIGN(const at::Tensor scale, model_.weights->checkpoint().read(name));
      if (!scale.any().item<bool>()) problems_.push_back(name + ": every scale is 0");
    }
    return {};
  }

  Status check_block(const BlockPlan& block) {
    SLIM_ASSIGN(const BlockWeights ours, model_.weights->load(block));
    for (const Layer& layer : block.layers) SLIM_TRY(check_values(layer, ours.weight[layer.id]));
    for (const auto& [name, tensor] : ours.params) {
      if (!at::isfinite(tensor).all().item<bool>()) problems_.push_back(name + ": holds NaN or Inf");
    }
    if (!reference_.weights) return {};
    SLIM_ASSIGN(BlockWeights theirs, reference_.weights->load(reference_.plan.blocks.at(block.index)));
    for (at::Tensor& weight : theirs.weight) weight = weight.to(at::kFloat);
    follow_folds(block, ours, theirs);
    for (const Layer& layer : block.layers)
      compare_layer(layer, ours.weight[layer.id], theirs.weight[layer.id]);
    compare_params(block, ours, theirs);
    return {};
  }

  /// Applies to `theirs` the scales that were folded into `ours`.
  static void follow_folds(const BlockPlan& block, const BlockWeights& ours, BlockWeights& theirs) {
    for (const ScaleEdge& edge : block.edges) {
      if (edge.fold == Fold::kLinearRows) continue;
      const double offset = edge.fold == Fold::kNormPlusOne ? 1 : 0;
      const at::Tensor before = theirs.params.at(edge.norm_weight).to(at::kFloat) + offset;
      const at::Tensor after = ours.params.at(edge.norm_weight).to(at::kFloat) + offset;
      scale_consumers(edge, at::where(after == 0, at::ones_like(after), before / after), theirs);
    }
    for (const ScaleEdge& edge : block.edges) {
      if (edge.fold != Fold::kLinearRows) continue;
      for (const LayerId id : edge.producers) {
        const at::Tensor mine = ours.weight[id].to(at::kFloat);
        at::Tensor& other = theirs.weight[id];
        const at::Tensor gain = (mine * other).sum(1) / other.square().sum(1).clamp_min(1e-30);
        const at::Tensor s = at::where(gain > 0, 1 / gain, at::ones_like(gain));
        other = other / s.unsqueeze(1);
        if (id == edge.producers.front()) scale_consumers(edge, s, theirs);
      }
    }
  }
  static void scale_consumers(const ScaleEdge& edge, const at::Tensor& s, BlockWeights& weights) {
    const at::Tensor columns = consumer_scale(edge, s);
    for (const LayerId id : edge.consumers) weights.weight[id] = weights.weight[id] * columns;
  }

  void compare_layer(const Layer& layer, const at::Tensor& ours, const at::Tensor& theirs) {
    const double ratio = signal_to_noise(theirs, ours.to(at::kFloat));
    layers_[layer.name] = ratio;
    if (model_.weights->stored(layer.name)) {
      sum_ += ratio;
      if (ratio < least_) std::tie(least_, least_name_) = std::pair(ratio, layer.name);
    }
    if (ratio < kLeastSignalToNoise) {
      problems_.push_back(layer.name + ": signal-to-noise ratio " + std::to_string(ratio) +
                          " dB against the reference, expected at least " +
                          std::to_string(kLeastSignalToNoise));
    }
  }

  /// Float tensors of a block may differ only where an edge folds into them.
  void compare_params(const BlockPlan& block, const BlockWeights& ours, const BlockWeights& theirs) {
    std::set<std::string> foldable;
    for (const ScaleEdge& edge : block.edges) foldable.insert({edge.norm_weight, edge.norm_bias});
    for (const auto& [name, tensor] : ours.params) {
      if (!foldable.contains(name) && !at::equal(tensor, theirs.params.at(name)))
        problems_.push_back(name + ": differs from the reference");
    }
  }

  Status check_globals() {
    for (const std::string& name : model_.plan.globals) {
      SLIM_ASSIGN(const uint64_t ours, tensor_checksum(model_.weights->checkpoint(), name));
      SLIM_ASSIGN(const uint64_t theirs, tensor_checksum(reference_.weights->checkpoint(), name));
      if (ours != theirs) problems_.push_back(name + ": differs from the reference");
    }
    return {};
  }

  Result<Report> report() const {
    if (!problems_.empty()) return failure();
    nlohmann::ordered_json json = {
        {"model", config_.model},
        {"adapter", model_.adapter_id},
        {"decoded_layers", decoded_},
        {"tensors", model_.weights->checkpoint().tensors().size()},
        {"bytes", model_.weights->checkpoint().total_bytes()},
        {"checksums", checksums_ ? checksums_->tensors.size() + checksums_->files.size() : 0}};
    Report report;
    report.text = config_.model + ": complete; " +
                  std::to_string(model_.weights->checkpoint().tensors().size()) + " tensors, " +
                  std::to_string(decoded_) + " quantized layers decoded; " +
                  (checksums_ ? "every byte is as it was written\n"
                              : std::string("no ") + kChecksumFile + ", so damaged bytes may go unnoticed\n");
    if (reference_.weights && decoded_ > 0) {
      json["signal_to_noise_db"] = layers_;
      json["least_signal_to_noise_db"] = least_;
      char line[512];
      std::snprintf(line, sizeof line, "signal-to-noise ratio against %s: mean %.1f dB, least %.1f dB (%s)\n",
                    config_.reference.c_str(), sum_ / static_cast<double>(decoded_), least_,
                    least_name_.c_str());
      report.text += line;
    }
    report.json = json_text(json);
    return report;
  }

  const VerifyConfig& config_;
  PluginRegistry& registry_;
  Progress& progress_;
  Model model_, reference_;
  std::optional<Checksums> checksums_;
  std::vector<std::string> problems_;
  std::map<std::string, double> layers_;
  int64_t decoded_ = 0;
  double sum_ = 0, least_ = 1e9;
  std::string least_name_;
};

}  // namespace

Result<Report> verify(const VerifyConfig& config, PluginRegistry& registry, Progress& progress) {
  auto report = Verification(config, registry, progress).run();
  const bool damaged = !report.ok() && (report.status().code() == Code::kCorrupt ||
                                        report.status().code() == Code::kUnsupported);
  if (damaged) return Status(Code::kVerification, report.status().message());
  return report;
}

}  // namespace slim
