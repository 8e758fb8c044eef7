#include "plugin/registry.h"

#include <doctest/doctest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>

#include "plugin/compatibility.h"
#include "plugin/elf_metadata.h"
#include "plugin/guard.h"
#include "plugin/options_schema.h"
#include "slim/version.hpp"

using namespace slim;
namespace fs = std::filesystem;

namespace {

std::string build_dir() {
  const char* text = std::getenv("SLIM_BUILD_DIR");
  REQUIRE_MESSAGE(text, "SLIM_BUILD_DIR is not set: run through ctest");
  return text;
}
std::string bad_dir() { return build_dir() + "/tests/plugins_bad"; }
std::string bad_file(const std::string& id) { return bad_dir() + "/libslim_algorithm_" + id + ".so"; }

std::string read_file(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  std::ostringstream text;
  text << stream.rdbuf();
  REQUIRE_MESSAGE(stream.good(), path);
  return text.str();
}

std::span<const std::byte> bytes(const std::string& text) { return std::as_bytes(std::span(text)); }

/// A folder that is gone with the test.
struct TemporaryFolder {
  fs::path path = fs::temp_directory_path() / ("slim_plugin_test_" + std::to_string(getpid()));
  TemporaryFolder() {
    fs::remove_all(path);
    fs::create_directories(path);
  }
  ~TemporaryFolder() { fs::remove_all(path); }
  std::string write(const std::string& name, const std::string& contents, mode_t mode = 0644) const {
    const std::string file = (path / name).string();
    std::ofstream(file, std::ios::binary) << contents;
    REQUIRE(chmod(file.c_str(), mode) == 0);
    return file;
  }
};

Status load(const std::string& name) { return PluginRegistry({bad_dir()}).algorithm(name).status(); }

void check_mentions(const Status& status, Code code, const std::vector<std::string>& parts) {
  CHECK_MESSAGE(status.code() == code, status.message());
  for (const std::string& part : parts)
    CHECK_MESSAGE(status.message().find(part) != std::string::npos, status.message());
}

}  // namespace

TEST_CASE("plugin/ the build tree's plugins are found beside libslim_core and can be made") {
  PluginRegistry registry;
  const auto info = registry.find(SLIM_ALGORITHM, "rtn");
  REQUIRE_MESSAGE(info.ok(), info.status().message());
  CHECK(info->path == fs::canonical(build_dir()).string() + "/lib/slim/plugins/libslim_algorithm_rtn.so");
  CHECK(info->build_tag == SLIM_BUILD_TAG);
  CHECK(info->compatible.ok());
  auto rtn = registry.algorithm("rtn");
  REQUIRE_MESSAGE(rtn.ok(), rtn.status().message());
  CHECK((*rtn)->default_scheme() == "w4a16");
  auto by_path = registry.algorithm(info->path);
  CHECK_MESSAGE(by_path.ok(), by_path.status().message());
}

TEST_CASE("plugin/ an unknown id names the nearest one and where was searched") {
  PluginRegistry registry({bad_dir()});
  check_mentions(registry.find(SLIM_ALGORITHM, "rnt").status(), Code::kInvalidArgument,
                 {"'rnt'", "did you mean 'rtn'?", bad_dir()});
  check_mentions(registry.adapter_for("no_such_model").status(), Code::kNotFound, {"no_such_model"});
}

TEST_CASE("plugin/ a path that holds another kind is refused") {
  PluginRegistry registry;
  const std::string path = build_dir() + "/lib/slim/plugins/libslim_algorithm_rtn.so";
  check_mentions(registry.format(path).status(), Code::kInvalidArgument, {"algorithm 'rtn'", "format"});
}

TEST_CASE("plugin/ every kind of bad plugin has an error of its own") {
  const std::string remedy = "rebuild the plugin against slim " SLIM_VERSION;
  check_mentions(load("other_torch"), Code::kIncompatible, {"LibTorch 9.99.0", host_facts().torch, remedy});
  check_mentions(load("other_build_tag"), Code::kIncompatible, {"slim-0.1-other", SLIM_BUILD_TAG, remedy});
  check_mentions(load("newer_api"), Code::kIncompatible, {"API 0.99", remedy});
  check_mentions(load("other_cxx_abi"), Code::kIncompatible, {"_GLIBCXX_USE_CXX11_ABI 0", remedy});
  check_mentions(load("other_compiler_abi"), Code::kIncompatible, {"__GXX_ABI_VERSION 9999", remedy});
  check_mentions(load("other_interface"), Code::kIncompatible,
                 {"libslim_algorithm_other_interface.so", "interface headers 0123456789abcdef", host_facts().interface, remedy});
  check_mentions(load("no_interface"), Code::kIncompatible, {"interface headers without a fingerprint", remedy});
  check_mentions(load("second_torch"), Code::kIncompatible, {"second copy of LibTorch", "libtorch_cpu_copy.so"});
  check_mentions(load("stale_descriptor"), Code::kIncompatible,
                 {"LibTorch 1.0.0", host_facts().torch, remedy});
  check_mentions(load("no_descriptor"), Code::kCorrupt, {"exports no slim_plugin_v1"});
  check_mentions(load("no_metadata"), Code::kNotFound, {"no section slim_meta"});
  check_mentions(load("throws"), Code::kInternal, {"'throws'", "the factory broke its promise"});
  check_mentions(load("returns_null"), Code::kInternal, {"'returns_null'", "neither an object nor an error"});
  check_mentions(load("reports_error"), Code::kUnsupported, {"'reports_error'", "xxxx"});
}

TEST_CASE("plugin/ a type of its own that a virtual function throws becomes an error") {
  const TemporaryFolder folder;
  const std::string path =
      folder.write("libslim_algorithm_throws_own_type.so", read_file(bad_dir() + "/misbehaving/libslim_algorithm_misbehaving.so"));
  PluginRegistry registry;
  auto algorithm = registry.algorithm(path);
  REQUIRE_MESSAGE(algorithm.ok(), algorithm.status().message());
  const Status status = guarded("setup", [&] { return (*algorithm)->setup({}); });
  check_mentions(status, Code::kInternal, {"setup", "no std::exception was thrown"});
}

TEST_CASE("plugin/ symbols that a library exports and libraries that it needs are read without loading it") {
  const auto facts = read_library_facts(bytes(read_file(bad_file("second_torch"))));
  REQUIRE_MESSAGE(facts.ok(), facts.status().message());
  CHECK(std::count(facts->needed.begin(), facts->needed.end(), "libtorch_cpu_copy.so") == 1);
  CHECK(std::count(facts->exported.begin(), facts->exported.end(), "slim_plugin_v1") == 1);
}

TEST_CASE("plugin/ errors of files name the file") {
  for (const char* id : {"other_torch", "other_build_tag", "newer_api", "stale_descriptor", "no_descriptor",
                         "no_metadata", "throws", "returns_null"}) {
    check_mentions(load(id), load(id).code(), {bad_file(id)});
  }
}

TEST_CASE("plugin/ files that are no libraries, cut off, missing or writable by all are refused") {
  const TemporaryFolder folder;
  const std::string good = read_file(bad_file("returns_null"));
  const std::string text = folder.write("libslim_algorithm_text.so", "#!/bin/sh\necho plugin\n");
  const std::string cut = folder.write("libslim_algorithm_cut.so", good.substr(0, good.size() / 2));
  const std::string open = folder.write("libslim_algorithm_open.so", good, 0646);
  const std::string empty = folder.write("libslim_algorithm_empty.so", "");
  check_mentions(load(text), Code::kIncompatible, {text, "no ELF file"});
  check_mentions(load(cut), Code::kCorrupt, {cut, "beyond its end"});
  check_mentions(load(open), Code::kInvalidArgument, {open, "0646", "chmod o-w"});
  check_mentions(load(empty), Code::kIncompatible, {empty, "no ELF file"});
  check_mentions(load(folder.path.string() + "/none.so"), Code::kInvalidArgument, {"none.so"});
  check_mentions(load(folder.path.string() + "/"), Code::kInvalidArgument, {"no regular file"});
}

TEST_CASE("plugin/ a broken file found by id is reported, not skipped") {
  const TemporaryFolder folder;
  folder.write("libslim_algorithm_rtn.so", "nonsense");
  const Status status = PluginRegistry({folder.path.string()}).algorithm("rtn").status();
  check_mentions(status, Code::kIncompatible, {folder.path.string(), "no ELF file"});
}

TEST_CASE("plugin/ listing runs no code and marks what is hidden by an earlier folder") {
  const TemporaryFolder folder;
  const std::string copy = folder.write(
      "libslim_algorithm_rtn.so", read_file(build_dir() + "/lib/slim/plugins/libslim_algorithm_rtn.so"));
  const auto plugins = PluginRegistry({folder.path.string(), bad_dir()}).list();  // other_torch would abort
  int hidden = 0, incompatible = 0;
  for (const PluginInfo& info : plugins) {
    hidden += info.id == "rtn" && info.shadowed_by == fs::canonical(copy).string();
    incompatible += !info.compatible.ok();
  }
  CHECK(hidden == 1);
  CHECK(incompatible == 9);  // other_torch, other_build_tag, newer_api, other_cxx_abi, other_compiler_abi, other_interface, no_interface, second_torch, no_metadata
}

TEST_CASE("plugin/ the current directory is never searched") {
  REQUIRE(setenv("SLIM_PLUGIN_PATH", ":/nowhere/plugins:", 1) == 0);
  const std::vector<std::string> path = PluginRegistry().search_path();
  unsetenv("SLIM_PLUGIN_PATH");
  CHECK(std::find(path.begin(), path.end(), "/nowhere/plugins") == path.begin());
  CHECK(std::find(path.begin(), path.end(), fs::current_path().string()) == path.end());
}

TEST_CASE("plugin/ metadata is read from the section, without running anything") {
  const auto metadata = read_plugin_metadata(bytes(read_file(bad_file("other_torch"))));
  REQUIRE_MESSAGE(metadata.ok(), metadata.status().message());
  CHECK(metadata->at("id") == "other_torch");
  CHECK(metadata->at("torch") == "9.99.0");
  CHECK(metadata->at("serves").empty());
}

TEST_CASE("plugin/ a library cut off anywhere gives an error") {
  const std::string good = read_file(bad_file("returns_null"));
  for (size_t size = 0; size < good.size(); size += 61) {
    CHECK_FALSE(read_plugin_metadata(bytes(good.substr(0, size))).ok());
  }
}

TEST_CASE("plugin/ changed bytes never make the reader leave the file") {
  const std::string good = read_file(bad_file("returns_null"));
  std::mt19937 random(7);
  const size_t table = good.size() - std::min<size_t>(good.size(), 4096);  // section headers lie at the end
  for (int round = 0; round < 3000; ++round) {
    std::string changed = good;
    for (int i = 0; i < 4; ++i) {
      const size_t at = round % 2 ? random() % 64 : table + random() % (good.size() - table);
      changed[at] = static_cast<char>(random());
    }
    const auto metadata = read_plugin_metadata(bytes(changed));
    if (!metadata.ok()) CHECK_FALSE(metadata.status().message().empty());
    const auto facts = read_library_facts(bytes(changed));
    if (!facts.ok()) CHECK_FALSE(facts.status().message().empty());
  }
}

TEST_CASE("plugin/ only the same facts on both sides are compatible") {
  const AbiFacts host = host_facts();
  CHECK(check_compatible(host, host).ok());
  const auto refused = [&](auto change) {
    AbiFacts plugin = host;
    change(plugin);
    return check_compatible(plugin, host).code() == Code::kIncompatible;
  };
  CHECK(refused([](AbiFacts& f) { f.api_major += 1; }));
  CHECK(refused([](AbiFacts& f) { f.api_minor += 1; }));
  CHECK(refused([](AbiFacts& f) { f.torch = "2.11.1"; }));
  CHECK(refused([](AbiFacts& f) { f.torch_abi += 1; }));
  CHECK(refused([](AbiFacts& f) { f.cxx11_abi = "0"; }));
  CHECK(refused([](AbiFacts& f) { f.gxx_abi = "9999"; }));
  CHECK(refused([](AbiFacts& f) { f.build_tag += "-asan"; }));
  CHECK(refused([](AbiFacts& f) { f.interface.back() = f.interface.back() == '0' ? '1' : '0'; }));
  AbiFacts older = host;
  AbiFacts newer_host = host;
  newer_host.api_minor += 1;
  CHECK(check_compatible(older, newer_host).ok());
}

TEST_CASE("plugin/ options are checked against the schema and defaults filled in") {
  const std::string schema = R"({"type":"object","properties":{
    "grid":{"type":"integer","default":20,"minimum":1,"maximum":100},
    "damp":{"type":"number","default":0.01,"exclusiveMinimum":0},
    "clip":{"type":"boolean","default":true},
    "objective":{"type":"string","default":"gram","enum":["gram","replay"]},
    "note":{"type":"string"}}})";
  const auto check = [&](const Options& raw) { return check_options("awq", schema, raw); };
  const auto defaults = check({});
  REQUIRE_MESSAGE(defaults.ok(), defaults.status().message());
  CHECK(*defaults == Options{{"grid", "20"}, {"damp", "0.01"}, {"clip", "true"}, {"objective", "gram"}});
  CHECK(check({{"grid", "40"}})->at("grid") == "40");
  CHECK(check({{"damp", "1e-3"}})->at("damp") == "1e-3");
  check_mentions(check({{"gird", "40"}}).status(), Code::kInvalidArgument,
                 {"awq", "'gird'", "did you mean 'grid'?"});
  for (const auto& [name, value] :
       Options{{"grid", "0"}, {"damp", "0"}, {"clip", "yes"}, {"objective", "gramm"}}) {
    check_mentions(check({{name, value}}).status(), Code::kInvalidArgument,
                   {"awq." + name, "'" + value + "'", "expected"});
  }
  for (const char* value : {"101", "4.5", "", "40x", " 40", "nan", "99999999999999999999"}) {
    CHECK_FALSE(check({{"grid", value}}).ok());
  }
  for (const char* value : {"nan", "inf", "-1", "0.1.2"}) CHECK_FALSE(check({{"damp", value}}).ok());
}

TEST_CASE("plugin/ an invalid schema is the plugin's fault and names it") {
  for (const char* schema :
       {"", "[]", "{", R"({"type":"array"})", R"({"properties":[]})", R"({"properties":{"a":1}})",
        R"({"properties":{"a":{}}})", R"({"properties":{"a":{"type":"tensor"}}})",
        R"({"properties":{"a":{"type":"integer","default":"x"}}})",
        R"({"properties":{"a":{"type":"integer","default":0,"minimum":1}}})",
        R"({"properties":{"a":{"type":"string","minimum":1}}})",
        R"({"properties":{"a":{"type":"string","pattern":"x"}}})"}) {
    check_mentions(check_options("awq", schema, {}).status(), Code::kInternal,
                   {"'awq'", "invalid options schema"});
  }
  PluginRegistry registry({bad_dir()});
  check_mentions(registry.checked_options(SLIM_ALGORITHM, "bad_schema", {}).status(), Code::kInternal,
                 {"'bad_schema'"});
}
