#include "common/files/side_file.hpp"

#include <doctest/doctest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include <nlohmann/json.hpp>

using namespace slim;
using namespace slim::model;

namespace {

struct Folder {
  Folder() : path(std::filesystem::temp_directory_path() / ("slim-side-file-" + std::to_string(::getpid()))) {
    std::filesystem::create_directories(path);
  }
  ~Folder() { std::filesystem::remove_all(path); }
  const std::filesystem::path path;
};

std::string nested(int levels) { return std::string(levels, '[') + std::string(levels, ']'); }

}  // namespace

TEST_CASE("side_file/ a file is read as it is, through a link too") {
  const Folder folder;
  std::ofstream(folder.path / "a.json") << std::string("a\0b\r\n", 5);
  std::filesystem::create_symlink(folder.path / "a.json", folder.path / "link.json");
  for (const char* name : {"a.json", "link.json"}) {
    const auto text = read_side_file(folder.path / name);
    REQUIRE(text.ok());
    CHECK(*text == std::string("a\0b\r\n", 5));
  }
}

TEST_CASE("side_file/ what is no plain file, or claims terabytes, is refused before memory is taken") {
  const Folder folder;
  std::ofstream(folder.path / "huge.json") << "{}";
  std::filesystem::resize_file(folder.path / "huge.json", uintmax_t{1} << 40);
  std::filesystem::create_symlink("/dev/zero", folder.path / "endless.json");
  CHECK(read_side_file(folder.path / "huge.json").status().code() == Code::kCorrupt);
  CHECK(read_side_file(folder.path / "endless.json").status().code() == Code::kNotFound);
  CHECK(read_side_file(folder.path).status().code() == Code::kNotFound);
  CHECK(read_side_file(folder.path / "gone.json").status().code() == Code::kNotFound);
}

TEST_CASE("side_file/ JSON nests 64 levels and no more; brackets in texts do not count") {
  CHECK(parse_side_json(nested(64), "a.json").ok());
  CHECK(parse_side_json(R"({"a": "\"[[)" + std::string(100, '[') + R"("})", "a.json").ok());
  for (const int levels : {65, 1'000'000}) {
    const auto json = parse_side_json(nested(levels), "a.json");
    REQUIRE_FALSE(json.ok());
    CHECK(json.status().message() == "a.json: nested deeper than 64 levels");
  }
  CHECK_FALSE(parse_side_json(std::string(1000, ']') + nested(65), "a.json").ok());
}
