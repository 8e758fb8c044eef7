#pragma once
#include <string>
#include <string_view>

#include "slim/status.hpp"

namespace slim {

/// Where the images of one data file may lie.
struct MediaRoot {
  std::string folder;  ///< the data file's own folder
  bool allow_outside = false;
};

/// An image that a data set names: an existing file, or the encoded image itself.
struct Media {
  std::string file;
  std::string bytes;
};

/// Resolves a path, a file: URL or a base64 data: URL. Nothing is decoded. Errors: no such file, a path that
/// leaves the folder (symbolic links followed), a URL of another kind, malformed base64.
Result<Media> locate_media(std::string_view reference, const MediaRoot&);

/// Strict base64 (RFC 4648, section 4): padded, without white space.
Result<std::string> decode_base64(std::string_view);

}  // namespace slim
