#include "image_target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  slim::fuzz::check_image(&slim::model::codec::decode_jpeg, slim::fuzz::text_of(data, size));
  return 0;
}
