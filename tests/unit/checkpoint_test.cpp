#include "checkpoint/checkpoint.h"

#include <ATen/ATen.h>
#include <doctest/doctest.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <random>
#include <set>
#include <span>

#include "unit/checkpoint_files.h"

using namespace slim;
using namespace slim::test;

namespace {

// A folder with a config and these weights.
struct Folder : TempFolder {
  explicit Folder(const std::string& weights, const std::string& config = R"({"model_type":"toy"})") {
    write_text(path() / "config.json", config);
    write_text(path() / "model.safetensors", weights);
  }
  Result<std::shared_ptr<const Checkpoint>> open() const { return Checkpoint::open(path().string()); }
};

// "a" I16 [2, 2] = 1..4 and "b" U8 [3] = "xyz".
const std::string kData("\1\0\2\0\3\0\4\0xyz", 11);
const std::string kHeader =
    "{" + entry("a", "I16", "[2,2]", 0, 8) + "," + entry("b", "U8", "[3]", 8, 11) + "}";

void check_fails(const Result<std::shared_ptr<const Checkpoint>>& result, const std::string& part) {
  REQUIRE_FALSE(result.ok());
  CAPTURE(result.status().message());
  CAPTURE(part);
  CHECK(result.status().message().find(part) != std::string::npos);
  CHECK(result.status().message().find('\n') == std::string::npos);
}

void check_refused(const std::string& header, const std::string& data, const std::string& part) {
  const Folder folder(raw_file(header, data));
  const auto result = folder.open();
  check_fails(result, part);
  CHECK(result.status().code() == Code::kCorrupt);
  CHECK(result.status().message().starts_with(folder / "model.safetensors"));
}

// Two shards, one tensor each, and an index.
struct Sharded : TempFolder {
  Sharded() {
    write_text(path() / "config.json", "{}");
    write_text(path() / "model-00001-of-00002.safetensors",
               raw_file("{" + entry("a", "U8", "[1]", 0, 1) + "}", "A"));
    write_text(path() / "model-00002-of-00002.safetensors",
               raw_file("{" + entry("b", "U8", "[1]", 0, 1) + "}", "B"));
    index(R"({"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"})");
  }
  void index(const std::string& map) {
    write_text(path() / "model.safetensors.index.json", R"({"metadata":{},"weight_map":)" + map + "}");
  }
  Result<std::shared_ptr<const Checkpoint>> open() const { return Checkpoint::open(path().string()); }
};

int64_t file_resident_kib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("RssFile:")) return std::stoll(line.substr(8));
  }
  return -1;
}

}  // namespace

TEST_CASE("checkpoint/ tensors are read as they are stored") {
  const Folder folder(raw_file(kHeader, kData));
  const auto checkpoint = folder.open();
  REQUIRE(checkpoint.ok());
  const Checkpoint& c = **checkpoint;
  CHECK(c.config_json() == R"({"model_type":"toy"})");
  CHECK(c.tensors().size() == 2);
  CHECK(c.tensors().at("a").shape == std::vector<int64_t>{2, 2});
  CHECK(c.total_bytes() == 11);
  CHECK(c.file_of("b") == folder / "model.safetensors");
  CHECK(at::equal(*c.read("a"), at::tensor({1, 2, 3, 4}, at::kShort).view({2, 2})));
  CHECK(at::equal(*c.read("b"), at::tensor({120, 121, 122}, at::kByte)));
  std::string bytes(3, ' ');
  REQUIRE(c.read_bytes("b", 0, std::as_writable_bytes(std::span(bytes))).ok());
  CHECK(bytes == "xyz");
  CHECK(c.read("c").status().code() == Code::kNotFound);
  c.prefetch("a");
}

TEST_CASE("checkpoint/ scalars, empty tensors, odd offsets and padded headers are allowed") {
  const std::string header = "{\"__metadata__\":{\"format\":\"pt\"}," + entry("byte", "U8", "[]", 0, 1) +
                             "," + entry("none", "F32", "[4,0]", 1, 1) + "," +
                             entry("odd", "F32", "[1]", 1, 5) + "}   ";
  const Folder folder(raw_file(header, std::string("\7\0\0\x80\x3f", 5)));
  const auto c = folder.open();
  REQUIRE(c.ok());
  CHECK((*c)->read("byte")->item<uint8_t>() == 7);
  CHECK((*c)->read("byte")->dim() == 0);
  CHECK((*c)->read("none")->sizes() == at::IntArrayRef({4, 0}));
  CHECK((*c)->read("odd")->item<float>() == 1.0f);
}

TEST_CASE("checkpoint/ every dtype of the format is known; sub-byte floats can only be copied") {
  std::string header = "{", data;
  for (int i = 0; i <= static_cast<int>(Dtype::kF8E5M2FNUZ); ++i) {
    const TensorSpec spec{std::to_string(i), static_cast<Dtype>(i), {4}};
    const auto bytes = *byte_size(spec);
    const auto begin = static_cast<int64_t>(data.size());
    header +=
        (i ? "," : "") + entry(spec.name, std::string(dtype_name(spec.dtype)), "[4]", begin, begin + bytes);
    data.append(static_cast<size_t>(bytes), static_cast<char>(i));
  }
  const Folder folder(raw_file(header + "}", data));
  const auto c = folder.open();
  REQUIRE(c.ok());
  for (const auto& [name, spec] : (*c)->tensors()) {
    const auto value = (*c)->read(name);
    CHECK(value.ok() == to_scalar_type(spec.dtype).has_value());
    if (!value.ok()) CHECK(value.status().code() == Code::kUnsupported);
    std::vector<std::byte> bytes(static_cast<size_t>(*byte_size(spec)));
    REQUIRE((*c)->read_bytes(name, 0, bytes).ok());
    const auto expected = static_cast<std::byte>(std::stoi(name));
    CHECK(std::ranges::all_of(bytes, [&](std::byte b) { return b == expected; }));
  }
}

TEST_CASE("checkpoint/ rows and entries are read alone, their numbers checked") {
  const Folder folder(raw_file(kHeader, kData));
  const auto opened = folder.open();
  REQUIRE(opened.ok());
  const Checkpoint& c = **opened;
  const auto ids = [](std::vector<int64_t> values) { return at::tensor(values, at::kLong); };
  CHECK(
      at::equal(*c.read_rows("a", ids({1, 0, 1})), at::tensor({3, 4, 1, 2, 3, 4}, at::kShort).view({3, 2})));
  CHECK(c.read_rows("a", ids({}))->sizes() == at::IntArrayRef({0, 2}));
  for (const int64_t bad : {-1, 2})
    CHECK(c.read_rows("a", ids({bad})).status().code() == Code::kInvalidArgument);
  CHECK_FALSE(c.read_rows("b", ids({0})).ok());
  CHECK_FALSE(c.read_rows("a", at::zeros({1}, at::kInt)).ok());
  CHECK(at::equal(*c.read_entry("a", 1), at::tensor({3, 4}, at::kShort)));
  CHECK(c.read_entry("b", 2)->item<uint8_t>() == 'z');
  for (const int64_t bad : {-1, 2}) CHECK(c.read_entry("a", bad).status().code() == Code::kInvalidArgument);
  std::array<std::byte, 4> four{};
  CHECK_FALSE(c.read_bytes("b", 0, four).ok());
  CHECK_FALSE(c.read_bytes("b", -1, std::span(four).first(1)).ok());
  CHECK(c.read_bytes("b", 3, std::span(four).first(0)).ok());
}

TEST_CASE("checkpoint/ each contradiction in a header is refused and named") {
  const auto one = [](const std::string& dtype, const std::string& shape, int64_t begin, int64_t end) {
    return "{" + entry("t", dtype, shape, begin, end) + "}";
  };
  check_refused(one("BF17", "[1]", 0, 2), "ab", "BF17");
  check_refused(one("U8", "[-1]", 0, 1), "a", "whole numbers");
  check_refused(one("U8", "[1.0]", 0, 1), "a", "whole numbers");
  check_refused(one("U8", "[99999999999999999999]", 0, 1), "a", "whole numbers");
  check_refused(one("U8", "[4294967296,4294967296]", 0, 0), "", "overflows");
  check_refused(one("U8", "[4611686018427387904,4611686018427387904,0]", 0, 0), "", "overflows");
  check_refused(one("F4", "[3]", 0, 1), "a", "whole number of bytes");
  check_refused(one("F32", "[2]", 0, 4), "abcd", "needs 8");
  check_refused(one("U8", "[1]", 2, 1), "ab", "end before they begin");
  check_refused(one("U8", "[1]", 1, 2), "ab", "belong to no tensor");
  check_refused(one("U8", "[1]", 0, 1), "ab", "after the last tensor");
  check_refused(one("U8", "[2]", 0, 2), "a", "truncated");
  check_refused("{" + entry("s", "U8", "[2]", 0, 2) + "," + entry("t", "U8", "[2]", 1, 3) + "}", "abc",
                "inside tensor \"s\"");
  check_refused("{" + entry("s", "U8", "[1]", 0, 1) + "," + entry("s", "U8", "[1]", 0, 1) + "}", "a",
                "twice");
  check_refused(R"({"t":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "a", "twice");
  check_refused(R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[0]}})", "a", "expected 2");
  check_refused(R"({"t":{"shape":[1],"data_offsets":[0,1]}})", "a", "dtype");
  check_refused(R"({"t":{"dtype":"U8","data_offsets":[0,1]}})", "a", "shape");
  check_refused(R"({"t":7})", "", "expected an object");
  check_refused(R"({"":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "a", "empty name");
  check_refused(R"({"\u0007":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "a", "control characters");
  check_refused(R"({"__metadata__":{"format":1}})", "", "__metadata__");
  check_refused("{}", "", "no tensor");
  check_refused("[]", "", "'{'");
  check_refused("{\"\xff\":1}", "", "invalid JSON");
  check_refused("{\"a\":" + std::string(100'000, '['), "", "nested deeper");
  check_refused("{} {}", "", "invalid JSON");
}

TEST_CASE("checkpoint/ a header length is believed only as far as the file goes") {
  check_fails(Folder("").open(), "truncated");
  check_fails(Folder("1234567").open(), "truncated");
  check_fails(Folder(length_prefix(3) + "{}").open(), "only 2 follow");
  check_fails(Folder(length_prefix(100'000'001) + "{}").open(), "at most 100000000");
  check_fails(Folder(length_prefix(UINT64_MAX) + "{}").open(), "at most 100000000");
  check_fails(Folder("version https://git-lfs.github.com/spec/v1\noid sha256:0\n").open(), "git lfs pull");
}

TEST_CASE("checkpoint/ every truncation of a file is an error") {
  const std::string whole = raw_file(kHeader, kData);
  REQUIRE(Folder(whole).open().ok());
  const Folder folder("");
  for (size_t length = 0; length < whole.size(); ++length) {
    write_text(folder.path() / "model.safetensors", whole.substr(0, length));
    const auto result = folder.open();
    CHECK_FALSE(result.ok());
  }
  write_text(folder.path() / "model.safetensors", whole + "!");
  CHECK_FALSE(folder.open().ok());
}

TEST_CASE("checkpoint/ whatever byte of the header changes, opening fails or every tensor can be read") {
  const std::string whole = raw_file(kHeader, kData);
  const Folder folder("");
  std::mt19937 random(1);
  int opened = 0;
  for (size_t i = 0; i < 8 + kHeader.size(); ++i) {
    for (int repeat = 0; repeat < 6; ++repeat) {
      std::string broken = whole;
      broken[i] = static_cast<char>(repeat == 0 ? broken[i] ^ 1 : random());
      write_text(folder.path() / "model.safetensors", broken);
      const auto result = folder.open();
      if (!result.ok()) continue;
      ++opened;
      for (const auto& [name, spec] : (*result)->tensors()) {
        std::vector<std::byte> bytes(static_cast<size_t>(*byte_size(spec)));
        CHECK((*result)->read_bytes(name, 0, bytes).ok());
        CHECK((*result)->read(name).ok() == to_scalar_type(spec.dtype).has_value());
      }
    }
  }
  CHECK(opened > 0);  // a changed name or an equally wide dtype is still a valid file
}

TEST_CASE("checkpoint/ shards and index must agree") {
  Sharded folder;
  auto good = folder.open();
  REQUIRE(good.ok());
  CHECK((*good)->weight_files().size() == 2);
  CHECK((*good)->read("b")->item<uint8_t>() == 'B');

  const std::string first = "model-00001-of-00002.safetensors", second = "model-00002-of-00002.safetensors";
  const auto map = [](const std::string& a, const std::string& b) {
    return R"({"a":")" + a + R"(","b":")" + b + R"("})";
  };
  folder.index(map(first, first));
  check_fails(folder.open(), "tensor 'b' is not in " + first);
  folder.index(map(second, first));
  check_fails(folder.open(), "is said to be in");
  folder.index(R"({"a":")" + first + R"("})");
  REQUIRE(folder.open().ok());  // the second shard is not meant
  folder.index(R"({"a":")" + first + R"(","b":")" + second + R"(","c":")" + second + R"("})");
  check_fails(folder.open(), "tensor 'c' is not in");
  folder.index(map(first, "model-3.safetensors"));
  check_fails(folder.open(), "model-3.safetensors");
  folder.index("{}");
  check_fails(folder.open(), "empty");
  folder.index(R"({"a":"x.safetensors","a":"x.safetensors"})");
  check_fails(folder.open(), "twice");

  folder.index(map(first, second));
  write_text(folder.path() / second,
             raw_file("{" + entry("a", "U8", "[1]", 0, 1) + "," + entry("b", "U8", "[1]", 1, 2) + "}", "AB"));
  check_fails(folder.open(), "tensor 'a' is also in");
  write_text(folder.path() / second,
             raw_file("{" + entry("b", "U8", "[1]", 0, 1) + "," + entry("z", "U8", "[1]", 1, 2) + "}", "AB"));
  check_fails(folder.open(), "tensor 'z' is not in");
}

TEST_CASE("checkpoint/ an index cannot lead out of its folder") {
  Sharded folder;
  for (const char* name : {"../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..", "",
                           ".x.safetensors", "x.bin", "x\\\\y.safetensors", "a\\u0000.safetensors"}) {
    folder.index(R"({"a":")" + std::string(name) + R"("})");
    check_fails(folder.open(), "of the same folder");
  }
  folder.index(R"({"a":7})");
  check_fails(folder.open(), "of the same folder");
}

TEST_CASE("checkpoint/ which file is meant must be clear") {
  TempFolder folder;
  const auto open = [&] { return Checkpoint::open(folder.path().string()); };
  const std::string file = raw_file(kHeader, kData);
  check_fails(Checkpoint::open(folder / "nowhere"), "no such folder");
  check_fails(open(), "config.json");
  write_text(folder.path() / "config.json", "[]");
  check_fails(open(), "expected a JSON object");
  check_fails(Checkpoint::open(folder / "config.json"), "is no folder");
  write_text(folder.path() / "config.json", R"({"a":1,"a":2})");
  check_fails(open(), "twice");
  write_text(folder.path() / "config.json", "{}");
  check_fails(open(), "no *.safetensors");
  write_text(folder.path() / "pytorch_model.bin", "x");
  check_fails(open(), "saved as safetensors first");
  write_text(folder.path() / "only.safetensors", file);
  CHECK(open().ok());
  write_text(folder.path() / "other.safetensors", file);
  check_fails(open(), "2 safetensors files");
  write_text(folder.path() / "model.safetensors", file);
  CHECK((*open())->weight_files() == std::vector<std::string>{"model.safetensors"});
  write_text(folder.path() / "some.safetensors.index.json",
             R"({"weight_map":{"a":"only.safetensors","b":"only.safetensors"}})");
  check_fails(open(), "has both model.safetensors and");
  fs::remove(folder.path() / "model.safetensors");
  CHECK((*open())->weight_files() == std::vector<std::string>{"only.safetensors"});
  write_text(folder.path() / "more.safetensors.index.json", "{}");
  check_fails(open(), "several indexes");
}

TEST_CASE("checkpoint/ a hub cache's links are followed, a link to nothing is named") {
  TempFolder cache;
  write_text(cache.path() / "blobs/1", raw_file(kHeader, kData));
  write_text(cache.path() / "blobs/2", "{}");
  fs::create_directories(cache.path() / "snapshots/abc");
  fs::create_symlink("../../blobs/1", cache.path() / "snapshots/abc/model.safetensors");
  fs::create_symlink("../../blobs/2", cache.path() / "snapshots/abc/config.json");
  const auto c = Checkpoint::open(cache / "snapshots/abc");
  REQUIRE(c.ok());
  CHECK((*c)->read("b").ok());
  fs::create_symlink("../../blobs/3", cache.path() / "snapshots/abc/tokenizer.json");
  check_fails(Checkpoint::open(cache / "snapshots/abc"), "tokenizer.json: the link leads to no file");
}

TEST_CASE("checkpoint/ side files are everything but weights, indexes, the config and hidden files") {
  const Folder folder(raw_file(kHeader, kData));
  for (const char* name :
       {"tokenizer.json", "merges.txt", "sub/readme.md", "pytorch_model.bin", "x.PT", "x.pth", "x.ckpt",
        "x.gguf", "old.safetensors", "sub/y.safetensors", "pytorch_model.bin.index.json", ".gitattributes",
        ".cache/file", "sub/.hidden", "sub/deep/file"}) {
    write_text(folder.path() / name, "x");
  }
  const auto c = folder.open();
  REQUIRE(c.ok());
  CHECK((*c)->side_files() == std::vector<std::string>{"merges.txt", "sub/readme.md", "tokenizer.json"});
}

TEST_CASE("checkpoint/ a file that shrinks while it is open is an error, not a signal") {
  const Folder folder(raw_file(kHeader, kData));
  const auto c = folder.open();
  REQUIRE(c.ok());
  fs::resize_file(folder.path() / "model.safetensors", 40);
  CHECK((*c)->read("a").status().code() == Code::kCorrupt);
  CHECK((*c)->read_rows("a", at::tensor({1}, at::kLong)).status().code() == Code::kCorrupt);
  std::array<std::byte, 8> bytes{};
  CHECK((*c)->read_bytes("a", 0, bytes).code() == Code::kCorrupt);
}

TEST_CASE("checkpoint/ reading leaves no mapped pages behind") {
  constexpr int64_t kBytes = 64 << 20;
  const Folder folder(raw_file("{" + entry("big", "U8", "[64,1048576]", 0, kBytes) + "}", ""));
  const fs::path file = folder.path() / "model.safetensors";
  fs::resize_file(file, fs::file_size(file) + kBytes);  // sparse: the data are a hole
  const auto c = folder.open();
  REQUIRE(c.ok());
  const int64_t before = file_resident_kib();
  CHECK((*c)->read("big")->count_nonzero().item<int64_t>() == 0);
  CHECK((*c)->read_entry("big", 63)->numel() == 1 << 20);
  CHECK(file_resident_kib() - before < 8 << 10);
}

#if !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)  // their shadow memory is larger than any limit
// AddressSanitizer reserves terabytes of addresses, so that a limit on them ends the program.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kAddressSanitizer = true;
#elif defined(__has_feature)
constexpr bool kAddressSanitizer = __has_feature(address_sanitizer);
#else
constexpr bool kAddressSanitizer = false;
#endif

TEST_CASE("checkpoint/ a tensor that does not fit into memory is an error" * doctest::skip(kAddressSanitizer)) {
  constexpr int64_t kBytes = int64_t{1} << 40;
  const Folder folder(raw_file("{" + entry("huge", "U8", "[1048576,1048576]", 0, kBytes) + "}", ""));
  const fs::path file = folder.path() / "model.safetensors";
  std::error_code error;
  fs::resize_file(file, fs::file_size(file) + kBytes, error);
  if (error) {
    MESSAGE("this file system cannot hold a sparse file of 1 TiB");
    return;
  }
  const auto c = folder.open();
  REQUIRE(c.ok());
  CHECK((*c)->read_rows("huge", at::tensor({1048575}, at::kLong))->numel() == 1048576);
  struct rlimit before {};
  ::getrlimit(RLIMIT_AS, &before);
  struct rlimit tight = before;
  tight.rlim_cur = (rlim_t{1} << 40) + (rlim_t{1} << 36);  // the mapping fits, a second TiB does not
  ::setrlimit(RLIMIT_AS, &tight);
  const auto read = (*c)->read("huge");
  ::setrlimit(RLIMIT_AS, &before);
  CHECK(read.status().code() == Code::kOutOfMemory);
}
#endif
