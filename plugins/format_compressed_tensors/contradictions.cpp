#include <algorithm>
#include <set>

#include "config.h"

namespace slim::compressed_tensors {
namespace {

bool is_half(c10::ScalarType type) {
  return type == c10::ScalarType::BFloat16 || type == c10::ScalarType::Half;
}

/// The value of the whole model's "format".
std::string expected_format(const OutputModel& found) {
  std::set<std::string_view> names;
  for (const auto& [layer, scheme] : found.schemes) {
    const auto storage = storage_of(scheme);
    if (storage.ok()) names.insert(storage_name(*storage));
  }
  return names.size() == 1 ? std::string(*names.begin()) : "mixed-precision";
}

/// Packed weights are multiplied in the model's dtype, and engines allocate their scales in it.
void check_scales(const OutputModel& found, std::vector<std::string>& lines) {
  if (!is_half(found.dtype)) return;
  for (const auto& [layer, scheme] : found.schemes) {
    const auto storage = storage_of(scheme);
    const auto scale = found.tensors.find(layer + ".weight_scale");
    if (!storage.ok() || *storage != Storage::kPacked || scale == found.tensors.end()) continue;
    if (scale->second.dtype == Dtype::kF32)
      lines.push_back(scale->first +
                      ": is F32, the model is not: engines keep scales of packed weights in its dtype");
  }
}

/// Scales of an FP8 cache are there for every attention, or for none.
void check_caches(const OutputModel& found, bool declared, std::vector<std::string>& lines) {
  for (const BlockPlan& block : found.plan->blocks) {
    for (const CacheSite& site : block.caches) {
      const bool stored =
          found.tensors.contains(site.name + ".k_scale") && found.tensors.contains(site.name + ".v_scale");
      if (declared && !stored && block.stage != "vision")
        lines.push_back(site.name +
                        ": kv_cache_scheme promises k_scale and v_scale, which are missing: engines take 1");
      if (!declared && stored)
        lines.push_back(site.name +
                        ": has k_scale and v_scale, but there is no kv_cache_scheme: engines pass over them");
    }
  }
}

/// Older writers had one name for all weights that are not packed.
bool says(const std::string& format, const std::string& expected) {
  return format == expected || (format == "naive-quantized" && expected != "pack-quantized");
}

/// Names of classes in transformers differ from those in files by their prefix, which engines map.
bool ignored_with_other_prefix(const std::string& name, const std::vector<std::string>& ignore) {
  return std::any_of(ignore.begin(), ignore.end(), [&](const std::string& entry) {
    return name.ends_with("." + entry) || entry.ends_with("." + name);
  });
}

}  // namespace

std::vector<std::string> Config::contradictions(const OutputModel& found) const {
  std::vector<std::string> lines;
  if (status_ != "compressed")
    lines.push_back("quantization_config.quantization_status: is \"" + status_ +
                    "\", expected \"compressed\": transformers makes weights of its own for anything else");
  if (!found.schemes.empty() && !says(format_, expected_format(found)))
    lines.push_back("quantization_config.format: is \"" + format_ + "\", but the tensors are " +
                    expected_format(found));
  for (const std::string& name : found.ignore) {
    if (find(name) && !ignored_with_other_prefix(name, ignore_))
      lines.push_back(
          name +
          ": is stored in float, but quantization_config does not ignore it: engines expect it quantized");
  }
  check_scales(found, lines);
  check_caches(found, cache_, lines);
  return lines;
}

}  // namespace slim::compressed_tensors
