#include <ATen/Parallel.h>

#include <algorithm>
#include <optional>

#include <nlohmann/json.hpp>

#include "calibrate/calibration.h"
#include "checkpoint/cast.h"
#include "commands/commands.h"
#include "model/device_memory.h"
#include "model/open_backend.h"
#include "plan/device_plan.h"
#include "plan/run_plan.h"
#include "plan/work_plan.h"
#include "plugin/guard.h"
#include "report/join_reports.h"
#include "report/plan_text.h"
#include "report/run_report.h"
#include "statistics/statistic_set.h"
#include "util/strict_json.h"
#include "util/text.h"

namespace slim {
namespace {

/// "model.layers.17.mlp" -> "model.layers.N.mlp": tensors that differ in numbers alone are one line of the table.
std::string without_numbers(const std::string& name) {
  std::string text;
  for (size_t i = 0; i < name.size(); ++i) {
    const bool digit = std::isdigit(static_cast<unsigned char>(name[i]));
    const bool starts_part = i == 0 || name[i - 1] == '.';
    if (digit && starts_part) {
      while (i + 1 < name.size() && std::isdigit(static_cast<unsigned char>(name[i + 1]))) ++i;
      text += 'N';
    } else {
      text += name[i];
    }
  }
  return text;
}

struct Row {
  std::string action;
  int64_t tensors = 0, bytes = 0;
};

/// What a run takes of the memory of its device.
struct DeviceNeed {
  std::string backend;
  DeviceMode mode;
  int64_t peak = 0, least = 0;

  nlohmann::ordered_json json() const {
    return {{"backend", backend},
            {"peak_memory_bytes", peak},
            {"least_memory_bytes", least},
            {"batch_size", mode.batch_size}};
  }
  std::string text() const {
    return "on " + backend + "       about " + bytes_text(peak) + " of its memory (" +
           std::to_string(mode.batch_size) + " samples at a time); with --max-vram at least " +
           bytes_text(least) + "\n";
  }
};

std::string left_out_text(const LeftOut& left) {
  return left.copy_of.empty() ? "left out: engines compute it" : "left out: a copy of " + left.copy_of;
}

/// For a device that is named, also where it is not there; "auto" means the best that opens. Empty: the run is on the CPU.
Result<std::optional<DeviceNeed>> device_need(const RunConfig& config, const Model& model,
                                              const std::vector<OutputPlan>& outputs,
                                              PluginRegistry& registry) {
  DeviceNeed need{config.backend, {}, 0, least_device_bytes(config, model, outputs)};
  int64_t free = 0;
  if (config.backend == "auto") {
    const auto opened = open_backend("auto", registry);
    if (!opened.ok() || opened->device.is_cpu()) return std::optional<DeviceNeed>();
    need.backend = opened->id;
    free = free_device_memory(opened->device);
  } else {
    SLIM_ASSIGN(const auto named, registry.backend(config.backend));
    if (named->device_type() == c10::DeviceType::CPU) return std::optional<DeviceNeed>();
  }
  SLIM_ASSIGN(need.mode, choose_device_mode(config, model, outputs, free));
  need.peak = peak_device_bytes(config, model, outputs, need.mode);
  return std::optional(need);
}

/// What the run will compute, and the time that it will take on this machine.
struct TimeNeed {
  PhaseOperations operations;
  MachineSpeed speed;
  PhaseSeconds seconds{};

  std::string text() const {
    char line[160];
    std::snprintf(line, sizeof line,
                  "time         about %.0f s on this processor (%.0f Gflop/s in fp32 products): ",
                  sum(seconds), speed.products * 1e-9);
    return line + phases_text(seconds, 0.05 * sum(seconds)) + "\n";
  }
  nlohmann::ordered_json json() const {
    nlohmann::ordered_json json = {{"seconds", sum(seconds)},
                                   {"flops_per_second", speed.products},
                                   {"forward_flops_per_second", speed.forward},
                                   {"bytes_per_second", speed.memory}};
    for (size_t i = 0; i < kPhases; ++i) {
      if (seconds[i] > 0)
        json["phases"][std::string(phase_name(static_cast<Phase>(i)))] = {{"operations", operations.of[i]},
                                                                          {"seconds", seconds[i]}};
    }
    return json;
  }
};

Result<TimeNeed> time_need(const RunConfig& config, const Model& model,
                           const std::vector<OutputPlan>& outputs) {
  if (config.threads > 0) at::set_num_threads(config.threads);
  SLIM_ASSIGN(const at::ScalarType dtype, model.compute_dtype(config.dtype));
  TimeNeed need;
  need.speed = measure_machine(dtype);
  for (const PlannedWork& work : count_work(config, model, outputs)) {
    const PhaseSeconds seconds = estimate_seconds(work, need.speed);
    for (size_t i = 0; i < kPhases; ++i) {
      need.operations.of[i] += work.operations.of[i];
      need.seconds[i] += seconds[i];
    }
  }
  return need;
}

Report describe(const OutputPlan& decided, const Model& model, int64_t peak, int64_t least,
                const std::optional<DeviceNeed>& device, const TimeNeed& time) {
  const auto& [config, recipe, plan] = decided;
  nlohmann::ordered_json json = {{"model", config.model},
                                 {"adapter", model.adapter_id},
                                 {"scheme", recipe.scheme.name},
                                 {"format", recipe.format_id}};
  std::map<std::string, Row> rows;
  auto actions = nlohmann::ordered_json::object();
  const auto row = [&](const std::string& name, const std::string& action, int64_t bytes) {
    Row& entry = rows[without_numbers(name) + '\t' + action];
    entry.action = action;
    ++entry.tensors;
    entry.bytes += bytes;
    add_new(actions, name, action);
  };
  std::set<std::string> seen;
  const auto keep = [&, &plan = plan](const std::string& name, const std::string& action) {
    if (!plan.replaced.contains(name) && seen.insert(name).second)
      row(name, action, byte_size(model.weights->logical().at(name)).value_or(0));
  };
  for (const std::string& name : model.plan.globals) keep(name, "copy");
  for (const std::string& name : model.plan.beside) keep(name, "copy (beside the model)");
  for (const LeftOut& left : model.plan.left_out) row(left.tensor, left_out_text(left), 0);
  for (const BlockPlan& block : model.plan.blocks) {
    for (const std::string& name : block.params) keep(name, "copy (a scale may be folded in)");
    for (const Layer& layer : block.layers) {
      const LayerDecision& decision = plan.layers[block.index][layer.id];
      int64_t bytes = 0;
      for (const TensorSpec& spec : decision.outputs) bytes += byte_size(spec).value_or(0);
      if (decision.scheme)
        row(layer.name + ".weight", decision.scheme->name, bytes);
      else if (!decision.outputs.empty())
        row(layer.name + ".weight", "float, cut out of " + layer.weight.tensor, bytes);
      else if (!layer.tied)
        keep(layer.weight.tensor, "float: " + decision.reason);
      if (!layer.bias.empty()) keep(layer.bias, "copy");
    }
    if (plan.kv_cache) {
      for (const CacheSite& site : block.caches)
        row(site.name + " key/value cache", config.kv_cache + " scales", 8);
    }
  }
  int64_t output = 0;
  for (const TensorSpec& spec : plan.outputs) output += byte_size(spec).value_or(0);
  json["tensors"] = std::move(actions);
  json["tensor_count"] = model.weights->logical().size();
  json["input_bytes"] = model.weights->checkpoint().total_bytes();
  json["output_bytes"] = output;
  json["peak_memory_bytes"] = peak;
  json["least_memory_bytes"] = least;
  if (device) json["device"] = device->json();
  json["time"] = time.json();
  json["layers_of_scheme"] = plan.layers_of_scheme;
  json["ignore"] = plan.ignore;
  json["indivisible"] = indivisible_json(plan);
  json["common_group_size"] = plan.common_group;
  json["dtype"] = dtype_key(plan.dtype);

  Report report;
  char line[512];
  for (const auto& [key, entry] : rows) {
    std::snprintf(line, sizeof line, "%7lld  %10s  %-70s %s\n", static_cast<long long>(entry.tensors),
                  bytes_text(entry.bytes).c_str(), key.substr(0, key.find('\t')).c_str(),
                  entry.action.c_str());
    report.text += line;
  }
  std::snprintf(
      line, sizeof line,
      "\nadapter %s, scheme %s, format %s\ninput        %s in %zu tensors\noutput       %s\npeak memory  "
      "about %s (%lld samples of up to %lld tokens); with --max-memory and --batch-size 1 at least %s\n",
      model.adapter_id.c_str(), recipe.scheme.name.c_str(), recipe.format_id.c_str(),
      bytes_text(model.weights->checkpoint().total_bytes()).c_str(), model.weights->logical().size(),
      bytes_text(output).c_str(), bytes_text(peak).c_str(), static_cast<long long>(config.num_samples),
      static_cast<long long>(config.max_seq_length), bytes_text(least).c_str());
  report.text += line;
  if (device) report.text += device->text();
  report.text += time.text();
  report.text += led_by("group size   ", group_size_text(config, plan));
  report.text += led_by("output dtype ", output_dtype_text(config, plan));
  report.json = json_text(json);
  return report;
}

}  // namespace

Report join_reports(const std::vector<Report>& reports) {
  if (reports.size() == 1) return reports.front();
  Report all;
  auto json = nlohmann::ordered_json::array();
  for (const Report& report : reports) {
    all.text += (all.text.empty() ? "" : "\n") + report.text;
    json.push_back(nlohmann::ordered_json::parse(report.json));
  }
  all.json = json_text(nlohmann::ordered_json{{"outputs", json}});
  return all;
}

Result<Report> plan(const RunConfig& config, PluginRegistry& registry) {
  SLIM_ASSIGN(std::vector<OutputPlan> outputs, make_recipes(config, registry));
  SLIM_ASSIGN(const Model model, Model::open(config.model, config.adapter, registry));
  SLIM_TRY(make_run_plans(outputs, model));
  if (!config.calib.empty()) SLIM_TRY(check_calibration_data(config, model));
  SLIM_ASSIGN(const MemoryMode mode, choose_memory_mode(config, model, outputs));
  const int64_t peak = peak_bytes(config, model, outputs, mode), least = least_bytes(config, model, outputs);
  SLIM_ASSIGN(const std::optional<DeviceNeed> device, device_need(config, model, outputs, registry));
  SLIM_ASSIGN(const TimeNeed time, time_need(config, model, outputs));
  std::vector<Report> reports;
  for (const OutputPlan& output : outputs)
    reports.push_back(describe(output, model, peak, least, device, time));
  return join_reports(reports);
}

}  // namespace slim
