#include <csetjmp>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include <jpeglib.h>

#include "common/image/image_codecs.hpp"

namespace slim::model::codec {
namespace {

/// A real progressive file has about ten scans; thousands of them over a large frame are an attack on the
/// reader's time.
constexpr int kMaxScans = 1000;

/// libjpeg with its errors as return values. libjpeg reports by longjmp, so code inside run() owns nothing.
class Decompressor {
 public:
  explicit Decompressor(std::string_view bytes) {
    info_.err = jpeg_std_error(&errors_);
    errors_.error_exit = [](j_common_ptr info) {
      auto* self = static_cast<Decompressor*>(info->client_data);
      info->err->format_message(info, self->message_);
      std::longjmp(self->jump_, 1);
    };
    errors_.emit_message = [](j_common_ptr, int) {};  // warnings: decoded as far as possible, as Pillow does
    info_.client_data = this;
    created_ = run([this] { jpeg_create_decompress(&info_); });
    info_.client_data = this;
    set_source(bytes);
    progress_.progress_monitor = [](j_common_ptr common) {
      auto* info = reinterpret_cast<j_decompress_ptr>(common);
      auto* self = static_cast<Decompressor*>(info->client_data);
      if (info->input_scan_number <= kMaxScans) return;
      std::snprintf(self->message_, sizeof(self->message_), "more than %d scans", kMaxScans);
      std::longjmp(self->jump_, 1);
    };
    info_.progress = &progress_;
  }
  ~Decompressor() { jpeg_destroy_decompress(&info_); }
  Decompressor(const Decompressor&) = delete;
  Decompressor& operator=(const Decompressor&) = delete;

  /// False if libjpeg failed inside `body`; message() then says why.
  template <class Body>
  bool run(Body body) {
    if (setjmp(jump_)) return false;
    body();
    return true;
  }
  bool created() const { return created_; }
  jpeg_decompress_struct& info() { return info_; }
  const char* message() const { return message_; }

 private:
  /// All bytes at once; asking for more suspends, so that a file without its end is told from a damaged one.
  void set_source(std::string_view bytes) {
    source_.next_input_byte = reinterpret_cast<const JOCTET*>(bytes.data());
    source_.bytes_in_buffer = bytes.size();
    source_.init_source = [](j_decompress_ptr) {};
    source_.fill_input_buffer = [](j_decompress_ptr) -> boolean { return FALSE; };
    source_.skip_input_data = [](j_decompress_ptr info, long count) {
      const size_t skipped = std::min(info->src->bytes_in_buffer, static_cast<size_t>(std::max(count, 0L)));
      info->src->next_input_byte += skipped;
      info->src->bytes_in_buffer -= skipped;
    };
    source_.resync_to_restart = jpeg_resync_to_restart;
    source_.term_source = [](j_decompress_ptr) {};
    info_.src = &source_;
  }

  jpeg_decompress_struct info_{};
  jpeg_error_mgr errors_{};
  jpeg_source_mgr source_{};
  jpeg_progress_mgr progress_{};
  std::jmp_buf jump_;
  char message_[JMSG_LENGTH_MAX] = "";
  bool created_ = false;
};

/// a * b / 255, rounded, for bytes.
int product(int a, int b) {
  const int scaled = a * b + 128;
  return (scaled + (scaled >> 8)) >> 8;
}

/// One row to RGB. Four components are inverted CMYK, whether or not the file says so with an Adobe marker.
void row_to_rgb(const uint8_t* in, int components, int64_t width, uint8_t* out) {
  for (int64_t x = 0; x < width; ++x, in += components, out += 3) {
    for (int c = 0; c < 3; ++c) {
      out[c] = components == 1 ? in[0] : static_cast<uint8_t>(in[3] - product(255 - in[c], in[3]));
    }
  }
}

J_COLOR_SPACE output_space(int components) {
  return components == 1 ? JCS_GRAYSCALE : components == 3 ? JCS_RGB : JCS_CMYK;
}

/// True when every row was read and the end of the image was seen; false when the data ran out. Runs inside
/// run().
bool read_rows(jpeg_decompress_struct& info, int components, uint8_t* row, uint8_t* rgb) {
  info.out_color_space = output_space(components);
  if (!jpeg_start_decompress(&info)) return false;
  while (info.output_scanline < info.output_height) {
    uint8_t* line = components == 3 ? rgb : row;
    if (jpeg_read_scanlines(&info, &line, 1) != 1) return false;
    if (components != 3) row_to_rgb(row, components, info.output_width, rgb);
    rgb += size_t{3} * info.output_width;
  }
  return jpeg_finish_decompress(&info);
}

}  // namespace

Result<at::Tensor> decode_jpeg(const Source& source) {
  Decompressor decompressor(source.bytes);
  jpeg_decompress_struct& info = decompressor.info();
  int header = JPEG_SUSPENDED;
  if (!decompressor.created() || !decompressor.run([&] { header = jpeg_read_header(&info, TRUE); })) {
    return source.damaged("JPEG", decompressor.message());
  }
  if (header != JPEG_HEADER_OK) return source.truncated("JPEG");
  const int components = info.num_components;
  if (components != 1 && components != 3 && components != 4) {
    return source.unsupported("this is a JPEG image of " + std::to_string(components) +
                              " components instead of 1, 3 or 4");
  }
  SLIM_ASSIGN(const at::Tensor rgb, new_pixels(source, info.image_height, info.image_width, 3));
  std::vector<uint8_t> row(size_t{info.image_width} * components);
  bool complete = false;
  uint8_t* pixels = rgb.data_ptr<uint8_t>();
  if (!decompressor.run([&] { complete = read_rows(info, components, row.data(), pixels); })) {
    return source.damaged("JPEG", decompressor.message());
  }
  if (!complete) return source.truncated("JPEG");
  return rgb;
}

}  // namespace slim::model::codec
