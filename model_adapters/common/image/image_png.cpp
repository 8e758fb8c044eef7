#include <array>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <vector>

#include <png.h>

#include "common/image/image_codecs.hpp"

namespace slim::model::codec {
namespace {

constexpr std::string_view kAtEnd = "the data end too early";

/// libpng with its errors as return values. libpng reports by longjmp, so code inside run() owns nothing.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : rest_(bytes) {
    png_ = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, &Reader::on_error,
                                  [](png_structp, png_const_charp) {});
    if (png_) info_ = png_create_info_struct(png_);
    if (png_) png_set_read_fn(png_, this, &Reader::on_read);
  }
  ~Reader() { png_destroy_read_struct(&png_, &info_, nullptr); }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  /// False if libpng failed inside `body`; message() then says why.
  template <class Body>
  bool run(Body body) {
    if (setjmp(jump_)) return false;
    body();
    return true;
  }
  bool created() const { return png_ && info_; }
  png_structp png() { return png_; }
  png_infop info() { return info_; }
  const char* message() const { return message_; }

 private:
  [[noreturn]] static void on_error(png_structp png, png_const_charp message) {
    auto* self = static_cast<Reader*>(png_get_error_ptr(png));
    std::snprintf(self->message_, sizeof(self->message_), "%s", message);
    std::longjmp(self->jump_, 1);
  }
  static void on_read(png_structp png, png_bytep out, size_t size) {
    auto* self = static_cast<Reader*>(png_get_io_ptr(png));
    if (size > self->rest_.size()) png_error(png, kAtEnd.data());
    std::memcpy(out, self->rest_.data(), size);
    self->rest_.remove_prefix(size);
  }

  std::string_view rest_;
  png_structp png_ = nullptr;
  png_infop info_ = nullptr;
  std::jmp_buf jump_;
  char message_[256] = "";
};

struct Header {
  int64_t height = 0, width = 0;
  int bits = 0;
  int color = 0;

  bool palette() const { return color == PNG_COLOR_TYPE_PALETTE; }
  bool wide_gray() const { return color == PNG_COLOR_TYPE_GRAY && bits == 16; }
  int64_t stored_channels() const {
    return (color & PNG_COLOR_MASK_COLOR) && !palette() ? 3 : wide_gray() ? 2 : 1;
  }
};

/// Reads the chunks before the pixels. Text and profiles are skipped, since a small one may unpack to
/// gigabytes.
void read_header(png_structp png, png_infop info, Header& header) {
  png_set_benign_errors(png, 1);
  png_set_user_limits(png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);  // the caller's limit on pixels decides
  static const png_byte kSkipped[] = "iCCP\0zTXt\0iTXt\0tEXt\0eXIf\0sPLT\0hIST";
  png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, kSkipped, 7);
  png_read_info(png, info);
  header.height = png_get_image_height(png, info);
  header.width = png_get_image_width(png, info);
  header.bits = png_get_bit_depth(png, info);
  header.color = png_get_color_type(png, info);
}

/// 1 byte of gray, 2 bytes of gray, 1 byte of palette index or 3 bytes of colour per pixel.
void read_rows(png_structp png, png_infop info, const Header& header, uint8_t** rows) {
  if (header.color == PNG_COLOR_TYPE_GRAY && header.bits < 8) png_set_expand_gray_1_2_4_to_8(png);
  if (header.palette()) png_set_packing(png);
  if (header.bits == 16 && !header.wide_gray()) png_set_strip_16(png);
  if (header.color & PNG_COLOR_MASK_ALPHA) png_set_strip_alpha(png);
  png_set_interlace_handling(png);
  png_read_update_info(png, info);
  png_read_image(png, rows);
}

using Palette = std::array<std::array<uint8_t, 3>, 256>;

/// The colours of PLTE; an index beyond them is black.
Palette read_palette(png_structp png, png_infop info) {
  Palette palette{};
  png_colorp colors = nullptr;
  int count = 0;
  png_get_PLTE(png, info, &colors, &count);
  for (int i = 0; i < count; ++i) palette[i] = {colors[i].red, colors[i].green, colors[i].blue};
  return palette;
}

/// 16-bit gray is clipped, not scaled: that is what Pillow's conversion from its mode I;16 does.
void to_rgb(const Header& header, const Palette& palette, const uint8_t* in, uint8_t* out) {
  const bool wide = header.wide_gray(), indexed = header.palette();
  for (int64_t i = 0; i < header.height * header.width; ++i, in += wide ? 2 : 1, out += 3) {
    const uint8_t gray = !wide ? in[0] : in[0] ? 255 : in[1];
    for (int c = 0; c < 3; ++c) out[c] = indexed ? palette[in[0]][c] : gray;
  }
}

}  // namespace

Result<at::Tensor> decode_png(const Source& source) {
  Reader reader(source.bytes);
  if (!reader.created())
    return Status(Code::kOutOfMemory, std::string(source.name) + ": no memory to read a PNG image");
  Header header;
  const auto failed = [&] {
    return reader.message() == kAtEnd ? source.truncated("PNG") : source.damaged("PNG", reader.message());
  };
  if (!reader.run([&] { read_header(reader.png(), reader.info(), header); })) return failed();
  SLIM_ASSIGN(const at::Tensor stored,
              new_pixels(source, header.height, header.width, header.stored_channels()));
  std::vector<uint8_t*> rows(header.height);
  for (int64_t y = 0; y < header.height; ++y) rows[y] = stored.data_ptr<uint8_t>() + y * stored.stride(0);
  if (!reader.run([&] { read_rows(reader.png(), reader.info(), header, rows.data()); })) return failed();
  if (header.stored_channels() == 3) return stored;
  SLIM_ASSIGN(const at::Tensor rgb, new_pixels(source, header.height, header.width, 3));
  to_rgb(header, read_palette(reader.png(), reader.info()), stored.data_ptr<uint8_t>(),
         rgb.data_ptr<uint8_t>());
  return rgb;
}

}  // namespace slim::model::codec
