#include "report/run_report.h"

#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include <nlohmann/json.hpp>

#include "checkpoint/cast.h"
#include "model/device_memory.h"
#include "plan/work_plan.h"
#include "report/plan_text.h"
#include "util/strict_json.h"
#include "util/text.h"

namespace slim {
namespace {

constexpr size_t kExpertsNamed = 10, kSamplesNamed = 10;

template <class... Args>
std::string format(const char* pattern, Args... args) {
  char text[512];
  std::snprintf(text, sizeof text, pattern, args...);
  return text;
}

nlohmann::ordered_json calibration_json(const Calibration& calibration) {
  auto by_sample = nlohmann::ordered_json::array();
  int64_t downscaled = 0;
  for (const SampleFacts& sample : calibration.samples) {
    by_sample.push_back({{"origin", sample.origin},
                         {"text_tokens", sample.text_tokens},
                         {"image_tokens", sample.image_tokens}});
    if (sample.downscaled) by_sample.back()["downscaled"] = true;
    downscaled += sample.downscaled;
  }
  return {{"samples", calibration.samples.size()},    {"text_tokens", calibration.text_tokens},
          {"image_tokens", calibration.image_tokens}, {"downscaled", downscaled},
          {"left_out", calibration.left_out},         {"skipped", calibration.skipped},
          {"remarks", calibration.remarks},           {"by_sample", by_sample}};
}

/// "downscaled   3 samples: calib.jsonl:3, ..."; nothing for none.
std::string samples_line(const char* title, const std::vector<std::string>& names, const char* between) {
  if (names.empty()) return "";
  std::string line = title + std::to_string(names.size()) + (names.size() == 1 ? " sample: " : " samples: ");
  for (size_t i = 0; i < std::min(kSamplesNamed, names.size()); ++i) line += (i ? between : "") + names[i];
  return line + (names.size() > kSamplesNamed ? std::string(between) + "...\n" : "\n");
}

std::string remarks_text(const std::vector<std::string>& remarks) {
  std::string text;
  for (const std::string& remark : remarks) text += "calibration data   " + remark + "\n";
  return text;
}

std::string calibration_text(const Calibration& calibration) {
  if (calibration.samples.empty()) return "";
  std::vector<int64_t> tokens;
  std::vector<std::string> downscaled;
  for (const SampleFacts& sample : calibration.samples) {
    tokens.push_back(sample.tokens());
    if (sample.downscaled) downscaled.push_back(sample.origin);
  }
  std::sort(tokens.begin(), tokens.end());
  const auto number = [](int64_t value) { return static_cast<long long>(value); };
  return format("calibrated on      %zu samples: %lld text tokens, %lld image tokens\n", tokens.size(),
                number(calibration.text_tokens), number(calibration.image_tokens)) +
         format("tokens of a sample %lld to %lld, median %lld\n", number(tokens.front()),
                number(tokens.back()), number(tokens[tokens.size() / 2])) +
         samples_line("downscaled         ", downscaled, ", ") +
         samples_line("left out           ", calibration.left_out, "\n                   ") +
         samples_line("skipped            ", calibration.skipped, "\n                   ") +
         remarks_text(calibration.remarks);
}

/// {"forward passes": 12.1, ...}: phases that took any time.
nlohmann::ordered_json phases_json(const PhaseSeconds& seconds) {
  auto json = nlohmann::ordered_json::object();
  for (size_t i = 0; i < kPhases; ++i) {
    if (seconds[i] > 0) json[std::string(phase_name(static_cast<Phase>(i)))] = seconds[i];
  }
  return json;
}

int64_t bytes_of(const std::vector<TensorSpec>& specs) {
  int64_t bytes = 0;
  for (const TensorSpec& spec : specs) bytes += byte_size(spec).value_or(0);
  return bytes;
}

}  // namespace

int64_t peak_resident_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

void RunReport::record_proof(size_t folds, double error) {
  folds_ += folds;
  largest_proof_error_ = std::max(largest_proof_error_, error);
}

void RunReport::record_experts(const BlockPlan& block, const StatisticSet& statistics) {
  if (!block.moe) return;
  for (size_t expert = 0; expert < block.moe->experts.size(); ++expert) {
    const Layer& layer = block.layers[block.moe->experts[expert].front()];
    const double tokens = statistics.tokens(layer.input);
    if (tokens >= 0) expert_tokens_.emplace_back(tokens, block.name + " expert " + std::to_string(expert));
  }
}

std::string RunReport::state() const {
  nlohmann::json json = {
      {"seconds", std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count()},
      {"folds", folds_},
      {"scattered_groups", scattered_groups_},
      {"largest_proof_error", largest_proof_error_},
      {"experts", expert_tokens_},
      {"blocks", nlohmann::json::array()},
      {"metrics", notes.metrics()}};
  for (const BlockTime& time : blocks_) json["blocks"].push_back({time.block, time.seconds, time.phases});
  for (const auto& [name, kind] : notes.kinds())
    json["notes"][name] = {{"count", kind.count}, {"examples", kind.examples}};
  return json_text(json);
}

Status RunReport::restore(const std::string& state) try {
  const auto json = nlohmann::json::parse(state);
  const std::chrono::duration<double> seconds(json.at("seconds").get<double>());
  start_ = std::chrono::steady_clock::now() -
           std::chrono::duration_cast<std::chrono::steady_clock::duration>(seconds);
  folds_ = json.at("folds").get<size_t>();
  scattered_groups_ = json.at("scattered_groups").get<bool>();
  largest_proof_error_ = json.at("largest_proof_error").get<double>();
  expert_tokens_ = json.at("experts").get<decltype(expert_tokens_)>();
  for (const auto& time : json.at("blocks"))
    blocks_.push_back(
        {time.at(0).get<std::string>(), time.at(1).get<double>(), time.at(2).get<PhaseSeconds>()});
  const auto kinds = json.value("notes", nlohmann::json::object());
  for (const auto& [name, kind] : kinds.items()) {
    notes.restore(name,
                  {kind.at("count").get<int64_t>(), kind.at("examples").get<std::vector<std::string>>()});
  }
  for (const auto& [where, values] : json.at("metrics").items()) {
    for (const auto& [key, value] : values.items())
      notes.metric(where, key, value.is_null() ? std::nan("") : value.get<double>());
  }
  return {};
} catch (const nlohmann::json::exception& error) {
  return {Code::kCorrupt, std::string("the report of the interrupted run: ") + error.what()};
}

std::string RunReport::experts_text() const {
  if (expert_tokens_.empty()) return "";
  auto sorted = expert_tokens_;
  std::sort(sorted.begin(), sorted.end());
  double sum = 0;
  for (const auto& [tokens, name] : sorted) sum += tokens;
  std::string text = format("experts            %zu, on average %.0f tokens each, least:\n", sorted.size(),
                            sum / sorted.size());
  for (size_t i = 0; i < std::min(kExpertsNamed, sorted.size()); ++i) {
    text += format("  %8.0f  %s\n", sorted[i].first, sorted[i].second.c_str());
  }
  return text;
}

PhaseSeconds RunReport::phases_of_all() const {
  PhaseSeconds all{};
  for (const BlockTime& time : blocks_) {
    for (size_t i = 0; i < kPhases; ++i) all[i] += time.phases[i];
  }
  return all;
}

/// One line for the run, and one for each block.
std::string RunReport::time_text() const {
  constexpr double kLeast = 0.05;  // shown as 0.1 s
  std::string text;
  if (const std::string all = phases_text(phases_of_all(), kLeast); !all.empty())
    text += "time               " + all + "\n";
  for (const BlockTime& time : blocks_) {
    if (time.seconds < kLeast) continue;
    const std::string phases = phases_text(time.phases, kLeast);
    text += format("  %8.1f s  ", time.seconds) + time.block + (phases.empty() ? "" : ": " + phases) + "\n";
  }
  return text;
}

Report RunReport::finish(const OutputPlan& output, const Model& model, const Calibration& calibration,
                         const std::string& products, at::Device device) const {
  const auto& [config, recipe, plan] = output;
  const int64_t input_bytes = model.weights->checkpoint().total_bytes(),
                output_bytes = bytes_of(plan.outputs), device_bytes = peak_device_memory(device);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  const double bits = plan.quantized_bits / std::max<double>(1, plan.quantized_weights);
  nlohmann::ordered_json json = {{"output", config.output},
                                 {"backend", config.backend},
                                 {"products", products},
                                 {"scheme", recipe.scheme.name},
                                 {"format", recipe.format_id},
                                 {"algorithms", recipe.algorithm_ids},
                                 {"input_bytes", input_bytes},
                                 {"output_bytes", output_bytes},
                                 {"quantized_weights", plan.quantized_weights},
                                 {"float_linear_weights", plan.float_weights},
                                 {"bits_per_weight", bits},
                                 {"seconds", seconds},
                                 {"peak_rss_bytes", peak_resident_bytes()},
                                 {"peak_device_bytes", device_bytes},
                                 {"calibration", calibration_json(calibration)},
                                 {"phases", phases_json(phases_of_all())},
                                 {"folds", folds_},
                                 {"scattered_groups", scattered_groups_},
                                 {"largest_proof_error", largest_proof_error_},
                                 {"indivisible", indivisible_json(plan)},
                                 {"common_group_size", plan.common_group},
                                 {"dtype", dtype_key(plan.dtype)}};
  for (const auto& [name, kind] : notes.kinds())
    json["notes"][name] = {{"count", kind.count}, {"examples", kind.examples}};
  for (const auto& [where, values] : notes.metrics()) json["metrics"][where] = values;
  for (const auto& [tokens, name] : expert_tokens_) json["expert_tokens"][name] = tokens;
  for (const BlockTime& time : blocks_) {
    json["blocks"].push_back(
        {{"block", time.block}, {"seconds", time.seconds}, {"phases", phases_json(time.phases)}});
  }

  Report report;
  report.json = json_text(json);
  report.text = format("written to         %s\n", config.output.c_str()) +
                format("scheme, format     %s, %s\n", recipe.scheme.name.c_str(), recipe.format_id.c_str()) +
                format("bytes              %s -> %s\n", bytes_text(input_bytes).c_str(),
                       bytes_text(output_bytes).c_str()) +
                format("bits per weight    %.3f in %lld quantized weights\n", bits,
                       static_cast<long long>(plan.quantized_weights));
  report.text += calibration_text(calibration);
  if (folds_)
    report.text +=
        format("scales folded      %zu, float output unchanged to %.1e\n", folds_, largest_proof_error_);
  report.text += experts_text() + notes.text();
  report.text += led_by("group size         ", group_size_text(config, plan));
  report.text += led_by("output dtype       ", output_dtype_text(config, plan));
  report.text += time_text();
  report.text += format("seconds, peak RAM  %.1f, %s\n", seconds, bytes_text(peak_resident_bytes()).c_str());
  report.text += "backend            " + config.backend +
                 (device_bytes > 0 ? ", at most " + bytes_text(device_bytes) + " of its memory" : "") +
                 (products.empty() ? "" : "; products of " + products) + "\n";
  return report;
}

}  // namespace slim
