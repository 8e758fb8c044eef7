#include "common/image/image.hpp"

#include <ATen/ops/empty.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <new>
#include <utility>

#include "common/image/image_codecs.hpp"

namespace slim::model {
namespace codec {

Status Source::damaged(std::string_view format, std::string_view detail) const {
  return {Code::kCorrupt, std::string(name) + ": " + std::string(format) + " image is damaged: " +
                              std::string(detail) + "; replace the file or leave it out"};
}

Status Source::truncated(std::string_view format) const {
  return damaged(format, "the data end too early, after " + std::to_string(bytes.size()) + " bytes");
}

Status Source::unsupported(std::string_view what) const {
  return {Code::kUnsupported, std::string(name) + ": " + std::string(what) +
                                  ", but only JPEG, PNG and WebP images are read; convert the file"};
}

Result<at::Tensor> new_pixels(const Source& source, int64_t height, int64_t width, int64_t channels) {
  if (height < 1 || width < 1) return source.damaged("this", "it has no pixels");
  if (width > source.limits.max_pixels / height) {
    return Status(Code::kInvalidArgument, std::string(source.name) + ": image has " + std::to_string(width) +
                                              " x " + std::to_string(height) + " pixels, over the limit of " +
                                              std::to_string(source.limits.max_pixels) +
                                              " pixels; make it smaller or leave it out");
  }
  try {
    return at::empty({height, width, channels}, at::kByte);
  } catch (const std::exception&) {  // c10::Error or std::bad_alloc: LibTorch has no other way to say it
    return Status(Code::kOutOfMemory, std::string(source.name) + ": no memory for an image of " +
                                          std::to_string(width) + " x " + std::to_string(height) +
                                          " pixels; make it smaller");
  }
}

}  // namespace codec

namespace {

constexpr std::string_view kPngSignature = "\x89PNG\r\n\x1a\n";

bool has(std::string_view bytes, size_t offset, std::string_view part) {
  return bytes.size() >= offset + part.size() && bytes.substr(offset, part.size()) == part;
}

/// The name of a format that is recognized but not read, or nothing.
std::string_view foreign_format(std::string_view bytes) {
  using namespace std::string_view_literals;
  struct Signature {
    size_t offset;
    std::string_view bytes, format;
  };
  static constexpr std::array kSignatures = {
      Signature{0, "GIF8"sv, "GIF"},
      Signature{0, "BM"sv, "BMP"},
      Signature{0, "II*\0"sv, "TIFF"},
      Signature{0, "MM\0*"sv, "TIFF"},
      Signature{4, "ftypavif"sv, "AVIF"},
      Signature{4, "ftypavis"sv, "AVIF"},
      Signature{4, "ftyphei"sv, "HEIC"},
      Signature{4, "ftypmif1"sv, "HEIF"},
      Signature{4, "jP  \r\n\x87\n"sv, "JPEG 2000"},
      Signature{0, "\xff\x4f\xff\x51"sv, "JPEG 2000"},
      Signature{0, "\0\0\1\0"sv, "ICO"},
      Signature{0, "8BPS"sv, "Photoshop"},
      Signature{0, "%PDF"sv, "PDF"},
      Signature{0, "<svg"sv, "SVG"},
  };
  for (const Signature& s : kSignatures) {
    if (has(bytes, s.offset, s.bytes)) return s.format;
  }
  return {};
}

Result<at::Tensor> decode_as_stored(const codec::Source& source) {
  const std::string_view bytes = source.bytes;
  if (bytes.empty()) return source.damaged("this", "the file is empty");
  if (has(bytes, 0, "\xff\xd8\xff")) return codec::decode_jpeg(source);
  if (has(bytes, 0, kPngSignature)) return codec::decode_png(source);
  if (has(bytes, 0, "RIFF") && has(bytes, 8, "WEBP")) return codec::decode_webp(source);
  if (const std::string_view format = foreign_format(bytes); !format.empty()) {
    return source.unsupported("this is a " + std::string(format) + " file");
  }
  return source.unsupported("the content is not that of a known image format");
}

/// Rows and columns as EXIF numbers them: 2 to 4 mirror or turn by 180 degrees, 5 to 8 also swap height and
/// width.
at::Tensor oriented(const at::Tensor& image, int orientation) {
  switch (orientation) {
    case 2:
      return image.flip({1});
    case 3:
      return image.flip({0, 1});
    case 4:
      return image.flip({0});
    case 5:
      return image.transpose(0, 1).contiguous();
    case 6:
      return image.transpose(0, 1).flip({1}).contiguous();
    case 7:
      return image.transpose(0, 1).flip({0, 1}).contiguous();
    case 8:
      return image.transpose(0, 1).flip({0}).contiguous();
    default:
      return image;
  }
}

Result<std::string> read_file(const std::string& path, int64_t max_bytes) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    return Status(Code::kNotFound, path + ": no such image file; check the path in the data set");
  }
  const auto size = static_cast<int64_t>(std::filesystem::file_size(path, error));
  if (!error && size > max_bytes) {
    return Status(Code::kInvalidArgument, path + ": image file has " + std::to_string(size) +
                                              " bytes, over the limit of " + std::to_string(max_bytes) +
                                              "; leave it out");
  }
  const std::unique_ptr<FILE, int (*)(FILE*)> file(error ? nullptr : std::fopen(path.c_str(), "rb"),
                                                   &std::fclose);
  std::string bytes(static_cast<size_t>(error ? 0 : size), '\0');
  if (!file || std::fread(bytes.data(), 1, bytes.size(), file.get()) != bytes.size()) {
    return Status(Code::kIo, path + ": image file cannot be read; check its permissions");
  }
  return bytes;
}

}  // namespace

Result<at::Tensor> decode_image(std::string_view bytes, std::string_view name, const ImageLimits& limits,
                                Orientation orientation) {
  SLIM_ASSIGN(at::Tensor image, decode_as_stored({bytes, name, limits}));
  return orientation == Orientation::kFromExif ? oriented(image, codec::exif_orientation(bytes)) : image;
}

Result<at::Tensor> read_image(const std::string& path, const ImageLimits& limits, Orientation orientation) {
  SLIM_ASSIGN(const std::string bytes, read_file(path, limits.max_file_bytes));
  return decode_image(bytes, path, limits, orientation);
}

}  // namespace slim::model
