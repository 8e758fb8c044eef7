#include <algorithm>
#include <array>
#include <filesystem>
#include <optional>
#include <span>

#include <nlohmann/json.hpp>

#include "common/files/side_file.hpp"
#include "common/input/vision_processor.hpp"

/// Options from preprocessor_config.json and its relatives.
namespace slim::model {
namespace {

using nlohmann::json;

constexpr int64_t kMaxPatchSize = 1024;           // real ones: 14, 16
constexpr int64_t kMaxPixels = int64_t{1} << 40;  // real ones: up to 2^25
constexpr int64_t kMaxVideoTokens = int64_t{1} << 20;
constexpr int kBicubic = 3;  // Pillow's number

struct Named {
  const json& object;
  std::string_view name;

  Status wrong(const std::string& key, const std::string& expected) const {
    return {Code::kInvalidArgument, std::string(name) + ": " + key + " is " +
                                        object[json::json_pointer(pointer(key))].dump() + ", expected " +
                                        expected + "; correct the file"};
  }
  /// "size.shortest_edge" as a JSON pointer.
  static std::string pointer(std::string key) {
    std::replace(key.begin(), key.end(), '.', '/');
    return "/" + key;
  }
  /// The value of a key; null counts as absent.
  const json* find(const std::string& key) const {
    const json::json_pointer at(pointer(key));
    return object.contains(at) && !object[at].is_null() ? &object[at] : nullptr;
  }
};

Status read(const Named& in, const std::string& key, int64_t max, int64_t& out) {
  const json* value = in.find(key);
  if (!value) return {};
  if (!value->is_number_integer() || value->get<int64_t>() < 1 || value->get<int64_t>() > max) {
    return in.wrong(key, "an integer from 1 to " + std::to_string(max));
  }
  out = value->get<int64_t>();
  return {};
}

Status read(const Named& in, const std::string& key, bool& out) {
  const json* value = in.find(key);
  if (!value) return {};
  if (!value->is_boolean()) return in.wrong(key, "true or false");
  out = value->get<bool>();
  return {};
}

Status read(const Named& in, const std::string& key, bool positive, double& out) {
  const json* value = in.find(key);
  if (!value) return {};
  if (!value->is_number() || (positive && !(value->get<double>() > 0))) {
    return in.wrong(key, positive ? "a number over 0" : "a number");
  }
  out = value->get<double>();
  return {};
}

Status read(const Named& in, const std::string& key, bool positive, std::array<double, 3>& out) {
  const json* value = in.find(key);
  if (!value) return {};
  if (!value->is_array() || value->size() != 3) return in.wrong(key, "three numbers");
  for (int i = 0; i < 3; ++i) SLIM_TRY(read(in, key + "." + std::to_string(i), positive, out[i]));
  return {};
}

/// min_pixels and max_pixels win over `size`, which must name both edges where it is given: that is how
/// transformers reads it.
Status read_bounds(const Named& in, PatchOptions& options) {
  if (const json* size = in.find("size"); size && !size->is_object()) {
    return in.wrong("size", "an object with shortest_edge and longest_edge");
  }
  const auto bound = [&](const std::string& edge, const std::string& key, int64_t& out) -> Status {
    if (in.find("size") && !in.find("size." + edge) && !in.find(key)) {
      return in.wrong("size", "the keys shortest_edge and longest_edge");
    }
    SLIM_TRY(read(in, "size." + edge, kMaxPixels, out));
    return read(in, key, kMaxPixels, out);
  };
  SLIM_TRY(bound("shortest_edge", "min_pixels", options.min_pixels));
  SLIM_TRY(bound("longest_edge", "max_pixels", options.max_pixels));
  if (options.min_pixels <= options.max_pixels) return {};
  return {Code::kInvalidArgument, std::string(in.name) + ": the least number of pixels, " +
                                      std::to_string(options.min_pixels) + ", is over the largest, " +
                                      std::to_string(options.max_pixels) +
                                      "; correct size or min_pixels and max_pixels"};
}

/// The keys that image and video processors share, over the defaults that `options` holds.
Status read_common(const Named& in, PatchOptions& options) {
  if (!in.object.is_object()) {
    return {Code::kCorrupt, std::string(in.name) + ": expected a JSON object; download the file again"};
  }
  SLIM_TRY(read(in, "patch_size", kMaxPatchSize, options.patch_size));
  SLIM_TRY(read(in, "temporal_patch_size", kMaxPatchSize, options.temporal_patch_size));
  SLIM_TRY(read(in, "merge_size", kMaxPatchSize, options.merge_size));
  SLIM_TRY(read_bounds(in, options));
  SLIM_TRY(read(in, "do_resize", options.resize));
  SLIM_TRY(read(in, "do_rescale", options.rescale));
  SLIM_TRY(read(in, "do_normalize", options.normalize));
  SLIM_TRY(read(in, "rescale_factor", true, options.rescale_factor));
  SLIM_TRY(read(in, "image_mean", false, options.mean));
  SLIM_TRY(read(in, "image_std", true, options.std));
  if (const json* resample = in.find("resample"); resample && *resample != kBicubic) {
    return {Code::kUnsupported, std::string(in.name) + ": resample is " + resample->dump() +
                                    ", but only 3 (bicubic) is supported"};
  }
  return {};
}

Status unsupported_type(const Named& in, const std::string& key, const std::string& expected) {
  return {Code::kUnsupported, std::string(in.name) + ": " + key + " is " + in.find(key)->dump() +
                                  ", but only " + expected + " are supported"};
}

Result<PatchOptions> image_options(const Named& in) {
  PatchOptions options;
  SLIM_TRY(read_common(in, options));
  const json* type = in.find("image_processor_type");
  if (type && *type != "Qwen2VLImageProcessor" && *type != "Qwen2VLImageProcessorFast") {
    return unsupported_type(in, "image_processor_type",
                            "Qwen2VLImageProcessor and Qwen2VLImageProcessorFast");
  }
  return options;
}

PatchOptions video_defaults(PixelBudget budget) {
  PatchOptions options;
  options.budget = budget;
  if (budget == PixelBudget::kFrame) {
    options.min_pixels = 128 * 28 * 28;
    options.max_pixels = 768 * 28 * 28;
    options.max_video_tokens = 128000;
    return options;
  }
  options.patch_size = 16;
  options.min_pixels = 128 * 32 * 32;
  options.max_pixels = 768 * 32 * 32;
  options.max_video_tokens = 768;
  options.mean = options.std = {0.5, 0.5, 0.5};
  return options;
}

Result<PatchOptions> video_options(const Named& in, PixelBudget budget) {
  if (const json* type = in.object.is_object() ? in.find("video_processor_type") : nullptr) {
    if (*type != "Qwen2VLVideoProcessor" && *type != "Qwen3VLVideoProcessor") {
      return unsupported_type(in, "video_processor_type", "Qwen2VLVideoProcessor and Qwen3VLVideoProcessor");
    }
    budget = *type == "Qwen3VLVideoProcessor" ? PixelBudget::kVideo : PixelBudget::kFrame;
  }
  PatchOptions options = video_defaults(budget);
  SLIM_TRY(read_common(in, options));
  SLIM_TRY(read(in, "cap_pixels_per_frame", options.cap_pixels_per_frame));
  SLIM_TRY(read(in, "max_video_tokens", kMaxVideoTokens, options.max_video_tokens));
  return options;
}

/// A JSON file of the folder; null where there is no such file.
Result<json> read_json(const std::filesystem::path& file) {
  std::error_code error;
  if (!std::filesystem::exists(file, error)) return json(nullptr);
  SLIM_ASSIGN(const std::string text, read_side_file(file));
  return parse_side_json(text, file.string());
}

struct Found {
  json object;
  std::string name;
};

/// The processor's own object: nested in processor_config.json, or the first of `files` there is.
Result<Found> find_config(const std::string& folder, const std::string& nested,
                          std::span<const char* const> files) {
  const std::filesystem::path base(folder);
  const std::filesystem::path shared = base / "processor_config.json";
  SLIM_ASSIGN(json all, read_json(shared));
  if (all.is_object() && all.contains(nested)) return Found{all[nested], shared.string() + ": " + nested};
  for (const char* file : files) {
    SLIM_ASSIGN(json object, read_json(base / file));
    if (!object.is_null()) return Found{std::move(object), (base / file).string()};
  }
  return Status(Code::kNotFound, folder + ": has neither " + nested + " in processor_config.json nor " +
                                     files.back() + "; download the complete checkpoint");
}

}  // namespace

Result<PatchOptions> parse_image_options(std::string_view text, std::string_view name) {
  SLIM_ASSIGN(const json object, parse_side_json(text, name));
  return image_options({object, name});
}

Result<PatchOptions> parse_video_options(std::string_view text, std::string_view name, PixelBudget budget) {
  SLIM_ASSIGN(const json object, parse_side_json(text, name));
  return video_options({object, name}, budget);
}

Result<PatchOptions> read_image_options(const std::string& folder) {
  static constexpr std::array kFiles = {"preprocessor_config.json"};
  SLIM_ASSIGN(const Found found, find_config(folder, "image_processor", kFiles));
  return image_options({found.object, found.name});
}

Result<PatchOptions> read_video_options(const std::string& folder, PixelBudget budget) {
  static constexpr std::array kFiles = {"video_preprocessor_config.json", "preprocessor_config.json"};
  SLIM_ASSIGN(const Found found, find_config(folder, "video_processor", kFiles));
  return video_options({found.object, found.name}, budget);
}

}  // namespace slim::model
