// What [compression.quantization] says of the scheme, made into one scheme name.
#include <charconv>
#include <map>

#include "config/dialects/angelslim.h"
#include "config/keys.h"
#include "slim/scheme.hpp"
#include "util/nearest.h"

namespace slim {
namespace {

using Keys = std::map<std::string, std::string>;

std::string get(const Keys& keys, const char* key) {
  const auto found = keys.find(key);
  return found == keys.end() ? "" : found->second;
}

Status contradiction(const std::string& what, const std::string& scheme, const std::string& has) {
  return Status(Code::kInvalidArgument, "compression.quantization." + what + " contradicts scheme '" +
                                            scheme + "', which has " + has + "; change one of them");
}

/// The scheme that bits, zero_point and the activation's granularity stand for without a name.
Result<std::string> scheme_from_bits(const Keys& keys) {
  const std::string bits = get(keys, "bits"), activation = get(keys, "activation");
  if (bits.empty()) return std::string();
  const std::string suffix = get(keys, "zero_point") == "true" ? "_asym" : "";
  if (activation.empty() || activation == "none") return "w" + bits + "a16" + suffix;
  if (bits == "8" && activation == "per-token") return std::string("w8a8");
  if (bits == "8" && activation == "per-tensor") return std::string("w8a8_static");
  return Status(Code::kInvalidArgument, "compression.quantization: no scheme has " + bits +
                                            "-bit weights and " + activation +
                                            " activations; known: " + join(scheme_names()));
}

/// Names of other tools leave the granularity of weights to quant_method; here each has a scheme of its own.
std::string with_granularity(const std::string& scheme, const Keys& keys) {
  const std::string weight = get(keys, "weight");
  if (scheme == "fp8_static" && weight == "per-channel") return "fp8_static_channel";
  if (scheme == "fp8_dynamic" && weight == "per-tensor") return "fp8_dynamic_tensor";
  return scheme;
}

Result<std::string> scheme_name(const Keys& keys) {
  const std::string name = get(keys, "name");
  if (name.empty()) return scheme_from_bits(keys);
  const auto* const alias = angelslim::scheme_name(name);
  if (!alias) return name;
  const std::string zero_point = get(keys, "zero_point");
  const bool asymmetric = zero_point.empty() ? alias->asymmetric : zero_point == "true";
  return with_granularity(asymmetric && alias->asymmetric_scheme ? alias->asymmetric_scheme : alias->scheme,
                          keys);
}

std::string granularity_text(const std::optional<QuantArgs>& args) {
  constexpr const char* kNames[] = {"per-tensor", "per-channel", "per-group", "per-block", "per-token"};
  return args ? kNames[static_cast<size_t>(args->granularity)] : "none";
}

Result<int64_t> group_size(const Keys& keys) {
  const std::string text = get(keys, "group_size"), weight = get(keys, "weight");
  int64_t size = 0;
  if (!text.empty()) {
    const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), size);
    if (error != std::errc{} || stop != text.data() + text.size() || size < -1) {
      return Status(Code::kInvalidArgument,
                    "compression.quantization.group_size: found '" + text +
                        "', expected a positive integer, -1 (whole rows) or 0 (the scheme's)");
    }
  }
  if (weight != "per-channel") return size;
  if (size > 0) {
    return Status(Code::kInvalidArgument, "compression.quantization: per-channel weights and group_size " +
                                              text + " contradict each other; leave one out");
  }
  return int64_t{-1};
}

/// Every word that was said agrees with the scheme.
Status check_agreement(const Keys& keys, const Scheme& scheme) {
  const std::string bits = get(keys, "bits"), zero_point = get(keys, "zero_point"),
                    weight = get(keys, "weight"), activation = get(keys, "activation");
  const std::string has_bits = scheme.weight ? std::to_string(scheme.weight->bits) : "none";
  if (!bits.empty() && bits != has_bits) {
    return contradiction("bits = " + bits, scheme.name, "weights of " + has_bits + " bits");
  }
  const bool asymmetric = scheme.weight && !scheme.weight->symmetric;
  if (!zero_point.empty() && (zero_point == "true") != asymmetric) {
    return contradiction("zero_point = " + zero_point, scheme.name,
                         asymmetric ? "asymmetric weights" : "no zero points of weights");
  }
  if (!weight.empty() && weight != granularity_text(scheme.weight)) {
    return contradiction("quant_method (weight) = " + weight, scheme.name,
                         granularity_text(scheme.weight) + " weights");
  }
  if (!activation.empty() && activation != granularity_text(scheme.input)) {
    return contradiction("quant_method.activation = " + activation, scheme.name,
                         granularity_text(scheme.input) + " activations");
  }
  return {};
}

/// Names of other tools name the algorithm too.
Status imply_plugin(RunConfig& config) {
  if (config.plugins.size() == 1 && angelslim::is_generic(config.plugins.front())) config.plugins.clear();
  const auto* const alias = angelslim::scheme_name(get(config.scheme_keys, "name"));
  if (config.plugins.empty() && alias) config.plugins = {alias->plugin};
  return {};
}

}  // namespace

Status resolve_scheme(RunConfig& config) {
  const Keys& keys = config.scheme_keys;
  SLIM_TRY(imply_plugin(config));
  SLIM_ASSIGN(config.group_size, group_size(keys));
  SLIM_ASSIGN(config.scheme, scheme_name(keys));
  if (config.scheme.empty()) return {};
  SLIM_ASSIGN(const Scheme plain, scheme_from_name(config.scheme));
  const bool whole_rows =
      plain.weight && plain.weight->granularity == Granularity::kChannel && config.group_size == -1;
  if (whole_rows) config.group_size = 0;
  SLIM_ASSIGN(const Scheme scheme, scheme_from_name(config.scheme, config.group_size));
  config.scheme = scheme.name;
  return check_agreement(keys, scheme);
}

}  // namespace slim
