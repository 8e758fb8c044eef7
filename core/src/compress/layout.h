#pragma once
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "compress/tensor_split.h"

/// Names and descriptions of compressed checkpoints.
namespace slim::compressed {

constexpr char kDescriptionFile[] = "quant_model_description.json";
constexpr char kPlainTag[] = "W8A8S", kCannTag[] = "W8A8SC", kSlimTag[] = "W8A8S_SLIM";
constexpr char kPlainStem[] = "quant_model_weight_w8a8s";

/// "part0-of-2"
std::string rank_folder(int64_t rank, int64_t ranks);
/// "quant_model_weight_w8a8sc.safetensors"
std::string rank_file(const std::string& tag);

/// What quant_model_description.json says: a type for each tensor, and other keys, kept as they are.
using Types = std::map<std::string, std::string>;
Result<Types> read_types(const std::string& path);
/// The description `original` with these types and this model type instead.
Result<std::string> description_text(const std::string& original_path, const Types& types,
                                     const std::string& tag);
/// config.json with every "quantize" of value `from` (in any letter case) set to that of `to`.
Result<std::string> config_text(const std::string& config_json, const std::string& from,
                                const std::string& to);

/// slim_compress.json: what `--decompress` needs.
struct Manifest {
  std::string tag;
  int64_t ranks = 0;
  std::map<std::string, Split> splits;  ///< of tensors that are not copied
};
std::string manifest_text(const Manifest&);
Result<Manifest> read_manifest(const std::string& folder);

/// "num_attention_heads" and "num_key_value_heads" of config.json's text part; 0 where it does not say.
Result<HeadCounts> head_counts(const std::string& config_json);

/// Regular files of a compressed folder that belong to no rank: tokenizer, processor, chat template.
Result<std::vector<std::string>> other_files(const std::string& folder);

}  // namespace slim::compressed
