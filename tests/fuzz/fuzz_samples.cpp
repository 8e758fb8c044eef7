#include "data/record.h"
#include "input.h"

using namespace slim;

namespace {

/// Nothing is read from outside of the folder, which is empty.
void check(const Result<Document>& document) {
  if (!document.ok()) return;
  for (const Message& message : document->messages) {
    for (const ContentPart& part : message.content) FUZZ_REQUIRE(part.files.empty());
  }
}

const RecordOptions& options() {
  static const RecordOptions options{{[] {
    char folder[] = "/tmp/slim-fuzz-samples-XXXXXX";
    FUZZ_REQUIRE(::mkdtemp(folder) != nullptr);
    return std::string(folder);
  }()}};
  static const int cleanup = std::atexit([] { ::rmdir(options.root.folder.c_str()); });
  (void)cleanup;
  return options;
}

}  // namespace

/// A line of a JSONL file, or a row of a table when it begins as a CBOR map.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  UnreadKeys unread;
  check(parse_record(fuzz::text_of(data, size), options(), &unread));
  check(parse_row({data, size}, options(), &unread));
  return 0;
}
