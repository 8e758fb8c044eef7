#include <map>

#include "checkpoint/safetensors.h"
#include "input.h"

using namespace slim;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const fuzz::MemoryFile memory(fuzz::text_of(data, size));
  const auto file = File::open_read(memory.path());
  FUZZ_REQUIRE(file.ok());
  const auto tensors = read_safetensors_header(*file);
  if (!tensors.ok()) return 0;
  int64_t end = -1;
  for (const StoredTensor& tensor : *tensors) {
    FUZZ_REQUIRE(end < 0 || tensor.begin == end);
    FUZZ_REQUIRE(byte_size(tensor.spec) == tensor.end - tensor.begin);
    end = tensor.end;
  }
  FUZZ_REQUIRE(end < 0 || end == static_cast<int64_t>(size));
  return 0;
}
