#include <memory>

#include <webp/decode.h>
#include <webp/demux.h>

#include "common/image/image_codecs.hpp"

namespace slim::model::codec {
namespace {

using AnimationDecoder = std::unique_ptr<WebPAnimDecoder, decltype(&WebPAnimDecoderDelete)>;

}  // namespace

/// The animation decoder serves still images too, and is what Pillow uses: a frame may cover only a part of
/// the canvas.
Result<at::Tensor> decode_webp(const Source& source) {
  const auto* data = reinterpret_cast<const uint8_t*>(source.bytes.data());
  const size_t size = source.bytes.size();
  WebPBitstreamFeatures features;
  const VP8StatusCode status = WebPGetFeatures(data, size, &features);
  if (status == VP8_STATUS_NOT_ENOUGH_DATA) return source.truncated("WebP");
  if (status != VP8_STATUS_OK) return source.damaged("WebP", "its header is not valid");
  // Allocated first because it also checks the limit: the decoder takes 8 bytes per pixel as soon as it is
  // created.
  SLIM_ASSIGN(const at::Tensor rgb, new_pixels(source, features.height, features.width, 3));
  const WebPData file = {data, size};
  WebPAnimDecoderOptions options;
  WebPAnimDecoderOptionsInit(&options);
  options.color_mode = MODE_RGBA;
  const AnimationDecoder decoder(WebPAnimDecoderNew(&file, &options), &WebPAnimDecoderDelete);
  uint8_t* canvas = nullptr;
  int timestamp = 0;
  WebPAnimInfo info;
  if (!decoder || !WebPAnimDecoderGetInfo(decoder.get(), &info) ||
      !WebPAnimDecoderGetNext(decoder.get(), &canvas, &timestamp)) {
    return source.damaged("WebP", "its first frame cannot be decoded; it may be truncated");
  }
  if (info.canvas_height != rgb.size(0) || info.canvas_width != rgb.size(1)) {
    return source.damaged("WebP", "its headers disagree about its size");
  }
  uint8_t* out = rgb.data_ptr<uint8_t>();
  for (int64_t i = 0; i < rgb.size(0) * rgb.size(1); ++i, canvas += 4, out += 3) std::copy_n(canvas, 3, out);
  return rgb;
}

}  // namespace slim::model::codec
