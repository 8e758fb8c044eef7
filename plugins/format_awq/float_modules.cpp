#include "float_modules.h"

#include "common/stored_layer.hpp"

#include <algorithm>
#include <set>
#include <string_view>

namespace slim::awq_format {
namespace {

/// Names that engines give merged layers: an entry inside of one would take them for float.
constexpr std::string_view kMerged[] = {"qkv_proj", "gate_up_proj"};

bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

std::vector<std::string> parts_of(const std::string& name) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('.', begin), name.size());
    parts.push_back(name.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

/// Runs of whole parts of a name, "visual" and "mlp.gate" of "model.visual.mlp.gate": the shortest first. None starts
/// or ends with a number, which would be found in longer numbers.
std::vector<std::string> candidates(const std::string& name) {
  const std::vector<std::string> parts = parts_of(name);
  const auto numeric = [](const std::string& part) {
    return part.find_first_not_of("0123456789") == std::string::npos;
  };
  std::vector<std::string> runs;
  for (size_t length = 1; length <= parts.size(); ++length) {
    for (size_t begin = 0; begin + length <= parts.size(); ++begin) {
      if (numeric(parts[begin]) || numeric(parts[begin + length - 1])) continue;
      std::string run = parts[begin];
      for (size_t i = 1; i < length; ++i) run += "." + parts[begin + i];
      runs.push_back(std::move(run));
    }
  }
  return runs;
}

}  // namespace

std::vector<std::string> float_modules(const OutputModel& model) {
  std::vector<std::string> floats;
  for (const BlockPlan& block : model.plan->blocks) {
    for (const Layer& layer : block.layers) {
      if (!model.schemes.contains(layer.name)) floats.push_back(layer.name);
    }
  }
  const std::vector<std::string> beside = formats::modules_beside(model);
  floats.insert(floats.end(), beside.begin(), beside.end());
  std::set<std::string> rejected;
  const auto usable = [&](const std::string& entry) {
    if (rejected.contains(entry)) return false;
    const bool clean = std::none_of(std::begin(kMerged), std::end(kMerged),
                                    [&](auto name) { return contains(name, entry); }) &&
                       std::none_of(model.schemes.begin(), model.schemes.end(),
                                    [&](const auto& s) { return contains(s.first, entry); });
    if (!clean) rejected.insert(entry);
    return clean;
  };
  std::vector<std::string> entries;
  for (const std::string& name : floats) {
    if (std::any_of(entries.begin(), entries.end(),
                    [&](const std::string& entry) { return contains(name, entry); }))
      continue;
    const std::vector<std::string> runs = candidates(name);
    const auto best = std::find_if(runs.begin(), runs.end(), usable);
    const std::string entry = best == runs.end() ? name : *best;
    entries.push_back(entry);
    if (!name.ends_with(entry)) entries.push_back(".*" + entry);  // transformers, whatever the prefix
  }
  return entries;
}

}  // namespace slim::awq_format
