#include "compress/layout.h"
#include "input.h"

using namespace slim;

/// The JSON files of a compressed checkpoint; the manifest's folder is one that the input never names.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(fuzz::text_of(data, size));
  const fuzz::MemoryFile file(text);
  const auto types = compressed::read_types(file.path());
  if (types.ok()) FUZZ_REQUIRE(compressed::description_text(file.path(), *types, "W8A8SC").ok());
  (void)compressed::config_text(text, "w8a8s", "w8a8sc");
  (void)compressed::head_counts(text);
  return 0;
}
