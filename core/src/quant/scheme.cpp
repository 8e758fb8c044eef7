#include "slim/scheme.hpp"

#include <charconv>

#include "util/nearest.h"

namespace slim {
namespace {

constexpr int64_t kGroupSize = 128;

QuantArgs args(NumberType type, int bits, Granularity granularity, bool symmetric = true,
               bool dynamic = false) {
  QuantArgs result;
  result.type = type;
  result.bits = bits;
  result.granularity = granularity;
  result.group_size = kGroupSize;
  result.symmetric = symmetric;
  result.dynamic = dynamic;
  return result;
}

/// wBa16 and wBa16_asym: integer weights in groups, activations in float.
Scheme weight_only(std::string name, int bits, bool symmetric) {
  return {std::move(name), args(NumberType::kInt, bits, Granularity::kGroup, symmetric), std::nullopt,
          std::nullopt};
}

std::vector<Scheme> named_schemes() {
  constexpr auto kInt = NumberType::kInt;
  constexpr auto kFloat = NumberType::kFloat;
  const QuantArgs int8_token = args(kInt, 8, Granularity::kToken, true, true);
  const QuantArgs int8_static = args(kInt, 8, Granularity::kTensor, false);
  const QuantArgs fp8_tensor = args(kFloat, 8, Granularity::kTensor);
  const QuantArgs fp8_channel = args(kFloat, 8, Granularity::kChannel);
  const QuantArgs int8_channel = args(kInt, 8, Granularity::kChannel);
  std::vector<Scheme> schemes;
  for (const int bits : {4, 8, 3, 2}) {
    const std::string name = "w" + std::to_string(bits) + "a16";
    schemes.push_back(weight_only(name, bits, true));
    schemes.push_back(weight_only(name + "_asym", bits, false));
  }
  schemes.push_back({"w8a8", int8_channel, int8_token, std::nullopt});
  schemes.push_back({"w8a8_static", int8_channel, int8_static, std::nullopt});
  schemes.push_back({"w8a8_static_sym", int8_channel, args(kInt, 8, Granularity::kTensor), std::nullopt});
  schemes.push_back({"fp8_static", fp8_tensor, fp8_tensor, std::nullopt});
  schemes.push_back({"fp8_static_channel", fp8_channel, fp8_tensor, std::nullopt});
  schemes.push_back(
      {"fp8_dynamic", fp8_channel, args(kFloat, 8, Granularity::kToken, true, true), std::nullopt});
  schemes.push_back(
      {"fp8_dynamic_tensor", fp8_tensor, args(kFloat, 8, Granularity::kTensor, true, true), std::nullopt});
  schemes.push_back({"fp8_block", args(kFloat, 8, Granularity::kBlock),
                     args(kFloat, 8, Granularity::kGroup, true, true), std::nullopt});
  schemes.push_back({"fp8_a16", fp8_channel, std::nullopt, std::nullopt});
  schemes.push_back({"w8a8s", int8_channel, int8_static, std::nullopt});
  schemes.push_back({"2:4", std::nullopt, std::nullopt, Sparsity{2, 4}});
  return schemes;
}

const std::vector<Scheme>& all_schemes() {
  static const std::vector<Scheme> schemes = named_schemes();
  return schemes;
}

/// "W4A16-ASYM" and "w4a16_asym" mean the same.
std::string canonical_name(std::string_view name) {
  std::string result(name);
  for (char& c : result) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    if (c == '-') c = '_';
  }
  return result;
}

/// "n:m"; nullopt if it is something else.
std::optional<Sparsity> parse_sparsity(std::string_view name) {
  Sparsity result;
  const char* const end = name.data() + name.size();
  const auto keep = std::from_chars(name.data(), end, result.keep);
  if (keep.ec != std::errc{} || keep.ptr == end || *keep.ptr != ':') return std::nullopt;
  const auto of = std::from_chars(keep.ptr + 1, end, result.of);
  if (of.ec != std::errc{} || of.ptr != end) return std::nullopt;
  return result;
}

Result<Scheme> find_scheme(std::string_view name);

/// "n:m+NAME": pruned as the left side says, what stays is quantized as the right side says.
Result<Scheme> find_combination(const std::string& name, size_t plus) {
  SLIM_ASSIGN(const Scheme pruned, find_scheme(name.substr(0, plus)));
  SLIM_ASSIGN(Scheme scheme, find_scheme(name.substr(plus + 1)));
  if (!pruned.sparsity || pruned.weight || !scheme.weight || scheme.sparsity) {
    return Status(
        Code::kInvalidArgument,
        "scheme '" + name + "': expected n:m and how the weights that stay are quantized, as in 2:4+w4a16");
  }
  scheme.name = name;
  scheme.sparsity = pruned.sparsity;
  return scheme;
}

Result<Scheme> find_scheme(std::string_view name) {
  const std::string wanted = canonical_name(name);
  for (const Scheme& scheme : all_schemes()) {
    if (scheme.name == wanted) return scheme;
  }
  if (const size_t plus = wanted.find('+'); plus != std::string::npos) return find_combination(wanted, plus);
  if (const auto sparsity = parse_sparsity(wanted)) {
    if (sparsity->keep < 1 || sparsity->keep >= sparsity->of || sparsity->of > 64) {
      return Status(Code::kInvalidArgument,
                    "scheme '" + wanted + "': n:m keeps n of every m weights, with 1 <= n < m <= 64");
    }
    return Scheme{wanted, std::nullopt, std::nullopt, sparsity};
  }
  const std::string known = " (known: " + join(scheme_names()) + ", n:m, and n:m+weights as in 2:4+w4a16)";
  return Status(Code::kInvalidArgument,
                "unknown scheme '" + std::string(name) + "'" + did_you_mean(name, scheme_names()) + known);
}

Status apply_group_size(int64_t group_size, Scheme& scheme) {
  const auto refuse = [&](const std::string& why) {
    return Status(Code::kInvalidArgument, "group size " + std::to_string(group_size) + ": " + why);
  };
  if (group_size < -1) return refuse("expected a positive number, or -1 for one scale per channel");
  const bool grouped = scheme.weight && scheme.weight->granularity == Granularity::kGroup;
  if (grouped && group_size > 0) {
    scheme.weight->group_size = group_size;
  } else if (grouped) {
    scheme.weight->granularity = Granularity::kChannel;
    scheme.weight->group_size = kGroupSize;
  } else if (!(group_size == -1 && scheme.weight && scheme.weight->granularity == Granularity::kChannel)) {
    return refuse("the weights of scheme '" + scheme.name + "' have no groups; leave it out");
  }
  return {};
}

}  // namespace

Result<Scheme> scheme_from_name(std::string_view name, int64_t group_size) {
  SLIM_ASSIGN(Scheme scheme, find_scheme(name));
  if (group_size != 0) SLIM_TRY(apply_group_size(group_size, scheme));
  return scheme;
}

std::vector<std::string> scheme_names() {
  std::vector<std::string> names;
  for (const Scheme& scheme : all_schemes()) names.push_back(scheme.name);
  return names;
}

double bits_per_weight(const QuantArgs& args, int64_t in_features) {
  constexpr double kScaleBits = 16;
  if (in_features <= 0) return args.bits;
  const double parameter_bits = kScaleBits + (args.symmetric ? 0 : args.bits);
  switch (args.granularity) {
    case Granularity::kGroup: {
      const int64_t groups = (in_features + args.group_size - 1) / args.group_size;
      return args.bits + parameter_bits * static_cast<double>(groups) / static_cast<double>(in_features);
    }
    case Granularity::kChannel:
      return args.bits + parameter_bits / static_cast<double>(in_features);
    case Granularity::kBlock:
      return args.bits + parameter_bits / static_cast<double>(args.block_rows * args.block_columns);
    case Granularity::kTensor:  // one scale for the whole matrix: nothing per weight
    case Granularity::kToken:
      return args.bits;
  }
  return args.bits;
}

}  // namespace slim
