#include "data/record.h"
#include "input.h"

using namespace slim;

namespace {

/// Nothing is read from outside of the folder, which is empty.
void check(const Result<Document>& document) {
  if (!document.ok()) return;
  FUZZ_REQUIRE(!document->messages.empty() || !document->text.empty());
  for (const Message& message : document->messages) {
    for (const ContentPart& part : message.content) FUZZ_REQUIRE(part.files.empty());
  }
}

const MediaRoot& root() {
  static const MediaRoot root{[] {
    char folder[] = "/tmp/slim-fuzz-samples-XXXXXX";
    FUZZ_REQUIRE(::mkdtemp(folder) != nullptr);
    return std::string(folder);
  }()};
  static const int cleanup = std::atexit([] { ::rmdir(root.folder.c_str()); });
  (void)cleanup;
  return root;
}

}  // namespace

/// A line of a JSONL file, or a row of a table when it begins as a CBOR map.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  check(parse_record(fuzz::text_of(data, size), root()));
  check(parse_row({data, size}, root()));
  return 0;
}
