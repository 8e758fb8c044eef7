// Runs the program itself: what it prints, where, and its exit code.
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

namespace {

namespace fs = std::filesystem;

struct Outcome {
  int code = -1;
  std::string out, err;
};

std::string read_all(FILE* stream) {
  std::string text;
  for (int c = 0; (c = std::fgetc(stream)) != EOF;) text += static_cast<char>(c);
  return text;
}

/// `slim` with these words, quoted for the shell by the caller.
Outcome slim(const std::string& words) {
  const char* build = std::getenv("SLIM_BUILD_DIR");
  REQUIRE_MESSAGE(build, "SLIM_BUILD_DIR is not set: run through ctest");
  const fs::path errors = fs::temp_directory_path() / ("slim_cli_test_" + std::to_string(getpid()));
  FILE* pipe = popen((std::string(build) + "/bin/slim " + words + " 2>" + errors.string()).c_str(), "r");
  REQUIRE(pipe);
  Outcome outcome;
  outcome.out = read_all(pipe);
  const int status = pclose(pipe);
  outcome.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  std::ostringstream text;
  text << std::ifstream(errors).rdbuf();
  outcome.err = text.str();
  fs::remove(errors);
  return outcome;
}

/// Wrong usage: exit code 2, nothing on stdout, one line on stderr that holds `part`.
void check_usage(const std::string& words, const std::string& part) {
  const Outcome outcome = slim(words);
  CHECK_MESSAGE(outcome.code == 2, words);
  CHECK(outcome.out.empty());
  CHECK_MESSAGE(outcome.err.find(part) != std::string::npos, outcome.err);
  CHECK(outcome.err.starts_with("slim: error: "));
  CHECK(std::count(outcome.err.begin(), outcome.err.end(), '\n') == 1);
}

}  // namespace

TEST_CASE("cli/ help and version go to stdout") {
  const Outcome version = slim("--version");
  CHECK(version.code == 0);
  CHECK(version.out.find("slim 0.1.0") == 0);
  const Outcome help = slim("--help");
  CHECK(help.code == 0);
  CHECK(help.out.find("--plugin") != std::string::npos);
  CHECK(help.out.find("slim verify DIR") != std::string::npos);
  CHECK(slim("help").out == help.out);
  CHECK(slim("help eval").out == slim("eval --help").out);
  CHECK(slim("eval -h").out.find("--no-generate") != std::string::npos);
}

TEST_CASE("cli/ without a word it shows its usage on stderr and fails") {
  const Outcome outcome = slim("");
  CHECK(outcome.code == 2);
  CHECK(outcome.out.empty());
  CHECK(outcome.err.find("usage:") != std::string::npos);
}

TEST_CASE("cli/ unknown commands and flags suggest the nearest") {
  check_usage("inspekt x", "did you mean 'inspect'?");
  check_usage("help vrify", "did you mean 'verify'?");
  check_usage("--plugn awq", "did you mean '--plugin'?");
  check_usage("--modle=x", "'--modle'; did you mean '--model'?");
  check_usage("eval x --limt 3", "did you mean '--limit'?");
  check_usage("plugins lst", "did you mean 'list'?");
}

TEST_CASE("cli/ missing, empty, double and malformed values are wrong usage") {
  check_usage("--plugin awq --output /nowhere/x", "--model is missing");
  check_usage("--model m --output /nowhere/x", "--plugin is missing");
  check_usage("--model m --plugin awq", "--output is missing");
  check_usage("--model", "--model");
  check_usage("--model --output x", "'--model' has no value");
  check_usage("--model ''", "--model");
  check_usage("--model a --model b", "'--model' is given twice");
  check_usage("--shuffle=yes", "--shuffle");
  check_usage("--num-samples many", "found 'many'");
  check_usage("--num-samples 0", "found '0'");
  check_usage("--group-size -7", "-7");
  check_usage("--scheme w4a61", "did you mean 'w4a16'?");
  check_usage("--set nonsense", "expected key=value");
  check_usage("--set datast.path=x --plugin awq --model m --output o", "[compression.datast]");
  check_usage("--max-shard-size 5XB", "5XB");
  check_usage("--plugin-dir /no/such/folder --plugin a --model m --output o", "no such folder");
  check_usage("stray word", "'stray'");
  check_usage("plan stray", "'stray'");
  check_usage("inspect", "folder is missing");
  check_usage("inspect a b", "unexpected argument 'b'");
  check_usage("eval x", "--data is missing");
  check_usage("eval x --data y --limit -1", "found '-1'");
  check_usage("verify", "folder is missing");
}

TEST_CASE("cli/ a wrong command line makes no output folder") {
  const fs::path folder = fs::temp_directory_path() / ("slim_cli_output_" + std::to_string(getpid()));
  const Outcome outcome =
      slim("--plugin rtn --model /no/such/model --scheme w4a16 --output " + folder.string());
  CHECK(outcome.code != 0);
  CHECK(outcome.err.find("slim: error: ") != std::string::npos);
  CHECK_FALSE(fs::exists(folder));
  CHECK_FALSE(fs::exists(folder.string() + ".partial"));
}

TEST_CASE("cli/ the keys of configuration files can be listed") {
  const Outcome outcome = slim("--help-keys");
  CHECK(outcome.code == 0);
  CHECK(outcome.out.find("[compression.quantization]") != std::string::npos);
}

TEST_CASE("cli/ plugins list shows what is there, for people and as JSON") {
  const Outcome text = slim("plugins list");
  CHECK(text.code == 0);
  CHECK(text.out.find("rtn") != std::string::npos);
  const auto json = nlohmann::json::parse(slim("plugins list --json").out);
  bool found = false;
  for (const auto& entry : json.at("plugins"))
    found |= entry.at("id") == "rtn" && entry.at("loadable") == true;
  CHECK(found);
}

TEST_CASE("cli/ plugins info shows the options of a plugin") {
  const Outcome text = slim("plugins info rtn");
  CHECK(text.code == 0);
  CHECK(text.out.find("range = <string: minmax | mse>  (default minmax)") != std::string::npos);
  const auto json = nlohmann::json::parse(slim("plugins info rtn --json").out);
  bool range = false;
  for (const auto& option : json.at(0).at("options"))
    range |= option.at("name") == "range" && option.at("default") == "minmax";
  CHECK(range);
  const Outcome unknown = slim("plugins info rnt");
  CHECK(unknown.code == 2);
  CHECK(unknown.err.find("did you mean 'rtn'?") != std::string::npos);
}
