// Signals that meet a run: the program itself, its progress and the thread that watches for them. Run under ThreadSanitizer too.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace {

namespace fs = std::filesystem;

std::string variable(const char* name) {
  const char* text = std::getenv(name);
  REQUIRE_MESSAGE(text, name << " is not set: run through ctest");
  return text;
}

struct TemporaryFolder {
  fs::path path = fs::temp_directory_path() / ("slim_interrupt_test_" + std::to_string(getpid()));
  TemporaryFolder() { fs::create_directories(path); }
  ~TemporaryFolder() { fs::remove_all(path); }
};

/// AWQ of a toy model; stderr is read here.
class Run {
 public:
  explicit Run(const fs::path& output, bool resume = false) {
    const std::string source = variable("SLIM_SOURCE_DIR");
    const std::vector<std::pair<std::string, std::string>> flags = {
        {"--plugin", "awq"},          {"--model", source + "/tests/data/toy-qwen3vl"},
        {"--set", "awq.grid=4"},      {"--calib", source + "/tests/data/samples/calib.jsonl"},
        {"--num-samples", "1"},       {"--threads", "1"},
        {"--output", output.string()}};
    std::vector<std::string> words = {variable("SLIM_BUILD_DIR") + "/bin/slim"};
    for (const auto& [name, value] : flags) words.insert(words.end(), {name, value});
    if (resume) words.push_back("--resume");
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    int ends[2];
    REQUIRE(pipe2(ends, O_CLOEXEC) == 0);
    child_ = fork();
    REQUIRE(child_ >= 0);
    if (child_ == 0) {
      dup2(ends[1], STDERR_FILENO);
      dup2(open("/dev/null", O_WRONLY), STDOUT_FILENO);
      execv(arguments[0], arguments.data());
      _exit(127);
    }
    close(ends[1]);
    errors_ = fdopen(ends[0], "r");
  }
  ~Run() { std::fclose(errors_); }

  /// Sends `signal` as soon as stderr shows `moment`.
  void interrupt(const std::string& moment, int signal) {
    while (text_.find(moment) == std::string::npos) REQUIRE_MESSAGE(read_more(), text_);
    kill(child_, signal);
  }
  /// The exit code; -1: a signal.
  int wait() {
    while (read_more()) {
    }
    int status = 0;
    REQUIRE(waitpid(child_, &status, 0) == child_);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  const std::string& errors() const { return text_; }

 private:
  bool read_more() {
    const int c = std::fgetc(errors_);
    if (c != EOF) text_ += static_cast<char>(c);
    return c != EOF;
  }

  pid_t child_ = -1;
  FILE* errors_ = nullptr;
  std::string text_;
};

}  // namespace

TEST_CASE("interrupt/ a signal stops a run at a point from which it goes on") {
  const TemporaryFolder folder;
  for (const int signal : {SIGINT, SIGTERM}) {
    Run run(folder.path / "out", signal == SIGTERM);
    run.interrupt("quantizing ", signal);
    CHECK_MESSAGE(run.wait() == 130, run.errors());
    CHECK_MESSAGE(run.errors().find("stopping at the next safe point") != std::string::npos, run.errors());
    CHECK_FALSE(fs::exists(folder.path / "out"));
  }
  Run whole(folder.path / "out", true);
  CHECK_MESSAGE(whole.wait() == 0, whole.errors());
  CHECK(fs::exists(folder.path / "out" / "config.json"));
}
