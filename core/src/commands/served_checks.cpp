#include "commands/served_checks.h"

#include <algorithm>
#include <cctype>

#include "util/finite.h"
#include "util/strict_json.h"

namespace slim {
namespace {

/// Lower-case letters and digits alone: "Qwen2_5_VL" and "qwen2_5_vl" are one name.
std::string plain_name(std::string_view name) {
  std::string plain;
  for (const char c : name)
    if (std::isalnum(static_cast<unsigned char>(c))) plain += static_cast<char>(std::tolower(c));
  return plain;
}

/// Classes of transformers are named after the model_type that they serve: every word of it stands in the class's name.
bool named_after(const std::string& architecture, std::string_view model_type) {
  const std::string plain = plain_name(architecture);
  for (size_t begin = 0; begin <= model_type.size();) {
    const size_t end = std::min(model_type.find_first_of("_-", begin), model_type.size());
    if (plain.find(plain_name(model_type.substr(begin, end - begin))) == std::string::npos) return false;
    begin = end + 1;
  }
  return true;
}

/// Engines choose the model's class by it. Code that comes with the checkpoint names classes as it likes.
void check_architectures(const nlohmann::ordered_json& config, std::vector<std::string>& lines) {
  const auto list = config.find("architectures");
  const bool named = list != config.end() && list->is_array() && !list->empty() && list->front().is_string();
  if (!named) {
    lines.push_back("config.json: has no \"architectures\", by which engines choose the model's class");
    return;
  }
  const std::string architecture = list->front().get<std::string>();
  const std::string model_type = config.value("model_type", "");
  if (!config.contains("auto_map") && !named_after(architecture, model_type))
    lines.push_back("config.json: architectures names " + architecture +
                    ", which is no class of model_type " + model_type);
}

}  // namespace

Result<std::vector<std::string>> architecture_problems(const Model& model) {
  std::vector<std::string> lines;
  SLIM_ASSIGN(const auto config, parse_strict_json(model.weights->checkpoint().config_json()));
  check_architectures(config, lines);
  return lines;
}

std::vector<std::string> processor_problems(const Model& model) {
  const auto processor = model.adapter->processor(model.weights->checkpoint().folder());
  const Code code = processor.ok() ? Code::kOk : processor.status().code();
  if (code == Code::kOk || code == Code::kUnsupported) return {};
  return {processor.status().message()};
}

Result<std::string> float_problem(const Checkpoint& checkpoint, const std::string& name) {
  constexpr int64_t kPiece = int64_t{64} << 20;
  const TensorSpec& spec = checkpoint.tensors().at(name);
  const int64_t bytes = byte_size(spec).value_or(0);
  std::vector<std::byte> piece(static_cast<size_t>(std::min(kPiece, bytes)));
  for (int64_t done = 0; done < bytes; done += kPiece) {
    const auto part = std::span(piece).first(static_cast<size_t>(std::min(kPiece, bytes - done)));
    SLIM_TRY(checkpoint.read_bytes(name, done, part));
    if (!all_finite(spec.dtype, part)) return name + ": holds NaN or Inf";
  }
  return std::string();
}

}  // namespace slim
