// `slim plugins validate` against plugins that are good, and against plugins that are wrong in one way each.
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

std::string build_dir() {
  const char* text = std::getenv("SLIM_BUILD_DIR");
  REQUIRE_MESSAGE(text, "SLIM_BUILD_DIR is not set: run through ctest");
  return text;
}

struct Outcome {
  int code = -1;
  Json json;
};

Outcome validate(const std::string& file, const std::string& flags = "") {
  FILE* const pipe =
      popen((build_dir() + "/bin/slim plugins validate " + file + " --json " + flags + " 2>&1").c_str(), "r");
  REQUIRE(pipe);
  std::string text;
  for (int c = 0; (c = std::fgetc(pipe)) != EOF;) text += static_cast<char>(c);
  const int status = pclose(pipe);
  Outcome outcome{WIFEXITED(status) ? WEXITSTATUS(status) : -1, Json::parse(text, nullptr, false)};
  REQUIRE_MESSAGE(outcome.json.is_object(), text);
  return outcome;
}

/// "check: message" of each failed check.
std::string failures(const Outcome& outcome) {
  std::string text;
  for (const Json& check : outcome.json["checks"]) {
    if (check["verdict"] == "failed")
      text += check["check"].get<std::string>() + ": " + check["message"].get<std::string>() + "\n";
  }
  return text;
}

/// A working plugin that misbehaves as its file is named.
struct Misbehaving {
  fs::path folder = fs::temp_directory_path() / ("slim_validate_test_" + std::to_string(getpid()));
  explicit Misbehaving(const std::string& fault) {
    fs::create_directories(folder);
    fs::copy_file(build_dir() + "/tests/plugins_bad/misbehaving/libslim_algorithm_misbehaving.so",
                  file(fault));
  }
  ~Misbehaving() { fs::remove_all(folder); }
  std::string file(const std::string& fault) const {
    return (folder / ("libslim_algorithm_" + fault + ".so")).string();
  }
};

std::string own(const std::string& file) { return build_dir() + "/lib/slim/plugins/" + file; }

/// Fails this check, says this, and fails no other.
void check_fails(const std::string& fault, const std::string& check, const std::string& message) {
  const Misbehaving plugin(fault);
  const Outcome outcome = validate(plugin.file(fault), "--only-failed");
  CHECK_MESSAGE(outcome.code == 3, fault);
  REQUIRE_MESSAGE(outcome.json["checks"].size() == 1, fault << ":\n" << failures(outcome));
  CHECK_MESSAGE(outcome.json["checks"][0]["check"] == check, failures(outcome));
  CHECK_MESSAGE(failures(outcome).find(message) != std::string::npos, failures(outcome));
}

}  // namespace

TEST_CASE("validate/ good plugins of every kind pass") {
  for (const char* file :
       {"libslim_algorithm_awq.so", "libslim_algorithm_fp8.so", "libslim_algorithm_gptq.so",
        "libslim_algorithm_int8.so", "libslim_algorithm_rtn.so", "libslim_algorithm_smooth.so",
        "libslim_format_ascend.so",
        "libslim_backend_cpu.so", "libslim_backend_npu.so", "libslim_format_awq.so",
        "libslim_format_compressed_tensors.so", "libslim_format_gptq.so", "libslim_format_gptq_v2.so"}) {
    const Outcome outcome = validate(own(file));
    CHECK_MESSAGE(outcome.code == 0, file << ":\n" << failures(outcome));
    CHECK(outcome.json["passed"].get<int>() > 8);
  }
  const char* source = std::getenv("SLIM_SOURCE_DIR");
  REQUIRE(source);
  const Outcome adapter = validate(own("libslim_adapter_qwen3vl.so"),
                                   "--model " + std::string(source) + "/tests/data/toy-qwen3vl");
  CHECK_MESSAGE(adapter.code == 0, failures(adapter));
  CHECK(adapter.json["skipped"] == 0);
}

TEST_CASE("validate/ a fault fails its own check and no other") {
  check_fails("prints", "library/process", "hello from a plugin");
  check_fails("moves", "library/process", "working directory");
  check_fails("leaks", "library/no-growth", "KiB");
  check_fails("bad_codes", "algorithm/scheme", "codes go from");
  check_fails("swallows_errors", "algorithm/host-errors", "swallowed");
  check_fails("worse_than_rounding", "algorithm/rounding", "1.05");
  check_fails("changes_function", "algorithm/function", "moved the block's float output");
}

TEST_CASE("validate/ results that depend on chance or order are found") {
  for (const char* fault : {"not_deterministic", "depends_on_order"}) {
    const Misbehaving plugin(fault);
    const Outcome outcome = validate(plugin.file(fault));
    CHECK(outcome.code == 3);
    const bool found = failures(outcome).find(fault == std::string("not_deterministic")
                                                  ? "algorithm/same-seed"
                                                  : "algorithm/order") != std::string::npos;
    CHECK_MESSAGE(found, failures(outcome));
  }
}

TEST_CASE("validate/ a crash ends its check alone") {
  const Misbehaving plugin("crashes");
  const Outcome outcome = validate(plugin.file("crashes"));
  CHECK(outcome.code == 3);
  CHECK_MESSAGE(
      failures(outcome).find("algorithm/scheme: it ended the process: Aborted") != std::string::npos,
      failures(outcome));
  CHECK(outcome.json["passed"].get<int>() > 8);
}

TEST_CASE("validate/ exports besides the descriptor are named") {
  const Outcome outcome = validate(
      build_dir() + "/tests/plugins_bad/misbehaving/libslim_algorithm_exports_too_much.so", "--only-failed");
  CHECK(outcome.code == 3);
  REQUIRE_MESSAGE(outcome.json["checks"].size() == 1, failures(outcome));
  CHECK(failures(outcome).starts_with("library/exports: "));
  CHECK(failures(outcome).find("slim_add_plugin") != std::string::npos);
}

TEST_CASE("validate/ a file that cannot be loaded fails its first check, with the reason") {
  for (const char* id : {"other_torch", "other_cxx_abi", "second_torch", "no_descriptor", "no_metadata",
                         "throws", "returns_null"}) {
    const Outcome outcome = validate(build_dir() + "/tests/plugins_bad/libslim_algorithm_" + id + ".so");
    CHECK(outcome.code == 3);
    CHECK(outcome.json["failed"] == 1);
    CHECK_MESSAGE(failures(outcome).starts_with("library/loads: "), failures(outcome));
  }
}

TEST_CASE("validate/ a check is left out by request, with its reason") {
  const Misbehaving plugin("prints");
  const Outcome outcome = validate(plugin.file("prints"), "--except 'library/process=it greets'");
  CHECK_MESSAGE(outcome.code == 0, failures(outcome));
  CHECK(outcome.json["skipped"].get<int>() >= 1);
}
