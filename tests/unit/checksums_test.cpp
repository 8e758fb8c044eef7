#include "checkpoint/checksums.h"

#include <ATen/ATen.h>
#include <doctest/doctest.h>

#include "checkpoint/writer.h"
#include "unit/checkpoint_files.h"

using namespace slim;
using namespace slim::test;

namespace {

/// Two shards, a config and a file in a subfolder, all with checksums.
Status write_output(const std::string& folder) {
  WriterOptions options;
  options.folder = folder;
  options.max_shard_size = 4;
  options.checksums = true;
  SLIM_ASSIGN(const auto writer, CheckpointWriter::create(options, {{"a", Dtype::kU8, {3}}, {"b", Dtype::kF32, {1}}}));
  SLIM_TRY(writer->write_file("config.json", "{}"));
  SLIM_TRY(writer->write_file("sub/notes.txt", "read me"));
  SLIM_TRY(writer->put("b", at::tensor({1.5f})));
  SLIM_TRY(writer->put("a", at::tensor({1, 2, 3}, at::kByte)));
  return writer->finish();
}

std::vector<std::string> problems_of(const std::string& folder) {
  const auto checksums = read_checksums(folder);
  REQUIRE_MESSAGE(checksums.ok(), checksums.status().message());
  REQUIRE(checksums->has_value());
  const auto problems = check_files(**checksums, folder);
  REQUIRE(problems.ok());
  return *problems;
}

}  // namespace

TEST_CASE("checksums/ an output's files and tensors have those that it carries") {
  const TempFolder folder;
  const std::string out = folder / "out";
  REQUIRE(write_output(out).ok());
  CHECK(problems_of(out).empty());
  const auto checksums = read_checksums(out);
  const auto checkpoint = Checkpoint::open(out);
  REQUIRE(checkpoint.ok());
  CHECK((*checksums)->tensors.size() == 2);
  CHECK((*checksums)->files.size() == 5);  // two headers, the index, two side files
  for (const auto& [name, checksum] : (*checksums)->tensors) CHECK(*tensor_checksum(**checkpoint, name) == checksum);
  CHECK((*checkpoint)->side_files() == std::vector<std::string>{"sub/notes.txt"});  // a copy of the model has other checksums
}

TEST_CASE("checksums/ any changed byte of a file, and a missing file, is named") {
  const TempFolder folder;
  const std::string out = folder / "out";
  REQUIRE(write_output(out).ok());
  const auto checksums = read_checksums(out);
  REQUIRE(checksums.ok());
  for (const auto& [name, checksum] : (*checksums)->files) {
    const fs::path path = fs::path(out) / name;
    const std::string stored = read_text_file(path);
    std::string changed = stored;
    changed[changed.size() / 3] = static_cast<char>(changed[changed.size() / 3] ^ 4);
    write_text(path, changed);
    CHECK(problems_of(out) == std::vector<std::string>{name + ": its bytes are not those that were written"});
    fs::remove(path);
    CHECK(problems_of(out) == std::vector<std::string>{name + ": is missing"});
    write_text(path, stored);
  }
  CHECK(problems_of(out).empty());
}

TEST_CASE("checksums/ a file of checksums that is damaged or leaves its folder is refused") {
  const TempFolder folder;
  const auto none = read_checksums(folder.path().string());
  REQUIRE(none.ok());
  CHECK_FALSE(none->has_value());
  for (const char* text : {"", "[]", "{}", R"({"algorithm":7,"files":{},"tensors":{}})", R"({"algorithm":"slim-64","files":{}})",
                           R"({"algorithm":"slim-64","files":{"a":"12"},"tensors":{}})", R"({"algorithm":"slim-64","files":{"a":1},"tensors":{}})",
                           R"({"algorithm":"slim-64","files":{"../a":"0123456789abcdef"},"tensors":{}})",
                           R"({"algorithm":"slim-64","files":{"/etc/passwd":"0123456789abcdef"},"tensors":{}})"}) {
    write_text(folder.path() / kChecksumFile, text);
    const auto read = read_checksums(folder.path().string());
    CHECK_MESSAGE(read.status().code() == Code::kCorrupt, text);
    CHECK(read.status().message().find(kChecksumFile) != std::string::npos);
  }
}
