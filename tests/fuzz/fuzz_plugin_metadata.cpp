#include "input.h"
#include "plugin/elf_metadata.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto file = std::as_bytes(std::span(data, size));
  (void)slim::read_plugin_metadata(file);
  (void)slim::read_library_facts(file);
  return 0;
}
