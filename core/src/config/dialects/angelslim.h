#pragma once
#include <string>

/// The words of AngelSlim's configuration files, in slim's.
namespace slim::angelslim {

/// The adapter that serves a model class ("QwenVL": "qwen2_5_vl"); any other name is an adapter's own.
std::string adapter_of(const std::string& model_class);
/// The classes that it knows, for help: "Qwen, QwenVL, ...".
std::string model_classes();

/// A name of compression.quantization.name: the scheme that it means here, and the algorithm that it implies.
struct SchemeName {
  const char *name, *scheme;
  const char* asymmetric_scheme;  ///< with zero points; null: it has none
  const char* plugin;
  bool asymmetric;  ///< without a word about zero_point
};
/// Null: not one of its names.
const SchemeName* scheme_name(const std::string& name);

/// True for a value of compression.name that names no algorithm ("PTQ").
bool is_generic(const std::string& algorithm);

}  // namespace slim::angelslim
