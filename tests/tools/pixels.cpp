/// Lets the Python oracle see what images become: reads jobs from standard input, one JSON object per line,
/// writes the tensor to the job's "out" and one line of JSON about it, or about the error, to standard
/// output.
#include <fstream>
#include <iostream>

#include <nlohmann/json.hpp>

#include "common/image/image.hpp"
#include "common/image/resize.hpp"
#include "common/input/vision_processor.hpp"

using namespace slim;
using namespace slim::model;
using nlohmann::json;

namespace {

Status write(const at::Tensor& tensor, const json& job, json& answer) {
  const at::Tensor whole = tensor.contiguous();
  std::ofstream file(job.at("out").get<std::string>(), std::ios::binary);
  file.write(static_cast<const char*>(whole.const_data_ptr()), static_cast<std::streamsize>(whole.nbytes()));
  answer["shape"] = whole.sizes().vec();
  if (!file.good()) return {Code::kIo, "the tensor cannot be written"};
  return {};
}

Status write(const PatchedImage& image, const json& job, json& answer) {
  answer["grid"] = image.grid;
  answer["downscaled"] = image.downscaled;
  return write(image.pixel_values, job, answer);
}

Result<std::vector<at::Tensor>> images_of(const json& job) {
  const auto orientation = job.value("exif", false) ? Orientation::kFromExif : Orientation::kAsStored;
  std::vector<at::Tensor> images;
  for (const std::string file : job.at("files")) {
    SLIM_ASSIGN(images.emplace_back(), read_image(file, {}, orientation));
  }
  return images;
}

Result<PatchOptions> options_of(const json& job, bool video) {
  const PixelBudget budget = job.value("budget", "") == "video" ? PixelBudget::kVideo : PixelBudget::kFrame;
  if (job.contains("folder")) {
    return video ? read_video_options(job["folder"], budget) : read_image_options(job["folder"]);
  }
  const std::string text = job.at("options").dump();
  return video ? parse_video_options(text, "options", budget) : parse_image_options(text, "options");
}

Status run(const json& job, json& answer) {
  const std::string kind = job.at("kind");
  SLIM_ASSIGN(const std::vector<at::Tensor> images, images_of(job));
  if (kind == "decode") return write(images.at(0), job, answer);
  SLIM_ASSIGN(PatchOptions options, options_of(job, kind == "video"));
  options.max_patches = job.value("max_patches", int64_t{0});
  if (kind == "video") {
    SLIM_ASSIGN(const PatchedImage patched, patch_video(images, options));
    return write(patched, job, answer);
  }
  SLIM_ASSIGN(const PatchedImage patched, patch_image(images.at(0), options));
  return write(patched, job, answer);
}

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    json answer;
    if (const Status status = run(json::parse(line), answer); !status.ok()) {
      answer = {{"error", status.message()}, {"code", static_cast<int>(status.code())}};
    }
    std::cout << answer.dump() << std::endl;
  }
}
