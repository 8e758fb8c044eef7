// Sessions: slim inside a program, from C++ and C.
#include "slim/session.hpp"

#include <doctest/doctest.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "slim/slim.h"

using namespace slim;
namespace fs = std::filesystem;

namespace {

struct TemporaryFolder {
  fs::path path = fs::temp_directory_path() / ("slim_session_test_" + std::to_string(getpid()));
  TemporaryFolder() { fs::create_directories(path); }
  ~TemporaryFolder() { fs::remove_all(path); }
  std::string file(const std::string& name) const { return (path / name).string(); }
};

std::string source(const std::string& name) {
  const char* text = std::getenv("SLIM_SOURCE_DIR");
  REQUIRE_MESSAGE(text, "SLIM_SOURCE_DIR is not set: run through ctest");
  return std::string(text) + "/" + name;
}

SessionOptions options(const std::string& plugin, const std::string& output) {
  SessionOptions options;
  options.settings = {{"compression.plugin", {plugin}, ""},
                      {"model.path", {source("tests/data/toy-qwen3vl")}, ""},
                      {"dataset.path", {source("tests/data/samples/calib.jsonl")}, ""},
                      {"dataset.num_samples", {"4"}, ""},
                      {"output.path", {output}, ""},
                      {"run.threads", {"1"}, ""}};
  return options;
}

std::unique_ptr<Session> open(const SessionOptions& options) {
  auto session = Session::open(options);
  REQUIRE_MESSAGE(session.ok(), session.status().message());
  return *std::move(session);
}

/// Counts, and stops the run or fails at a step.
struct Counter final : Progress {
  void begin(std::string_view, int64_t) override { ++phases; }
  void step(std::string_view) override {
    ++steps;
    if (steps == throw_at) throw std::runtime_error("the caller's own fault");
    if (on_step) on_step();
  }
  void warn(std::string_view) override {}
  bool cancelled() override { return stop; }
  int phases = 0, steps = 0, throw_at = 0;
  std::atomic<bool> stop = false;
  std::function<void()> on_step;
};

std::string contents(const std::string& folder) {
  std::ostringstream text;
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder)) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  for (const fs::path& file : files) {
    if (file.extension() == ".safetensors")
      text << file.filename() << std::ifstream(file, std::ios::binary).rdbuf();
  }
  return text.str();
}

}  // namespace

TEST_CASE("session/ opening names what is wrong before anything is read") {
  const auto refused = [](std::vector<Setting> settings) {
    SessionOptions wrong;
    wrong.settings = std::move(settings);
    const auto session = Session::open(wrong);
    return session.ok() ? std::string("it opened") : session.status().message();
  };
  const Setting model{"model.path", {"/nowhere"}, ""}, rtn{"compression.plugin", {"rtn"}, ""};
  CHECK(refused({}).find("model.path") != std::string::npos);
  CHECK(refused({model}).find("compression.plugin") != std::string::npos);
  CHECK(refused({model, {"compression.plugin", {"rtm"}, ""}}).find("did you mean 'rtn'?") !=
        std::string::npos);
  CHECK(refused({model, rtn, {"rtn.rnge", {"mse"}, ""}}).find("'rnge'") != std::string::npos);
  CHECK(refused({model, rtn, {"output.formt", {"x"}, "line 3"}}).starts_with("line 3: "));
  CHECK(refused({model, rtn, {"run.seed=x", {}, ""}}).find("run.seed") != std::string::npos);
  CHECK(refused({model, rtn, {"run.backend", {"cuba"}, ""}}).find("cuba") != std::string::npos);
  CHECK(refused({model, rtn}) == "it opened");  // the checkpoint comes later
}

TEST_CASE("session/ it plans, runs and reports") {
  const TemporaryFolder folder;
  const auto session = open(options("rtn", folder.file("out")));
  CHECK_FALSE(session->report().ok());
  const auto plan = session->plan();
  REQUIRE_MESSAGE(plan.ok(), plan.status().message());
  CHECK(plan->json.starts_with("{"));
  CHECK_FALSE(fs::exists(folder.file("out")));
  Counter progress;
  const Status status = session->run(progress);
  REQUIRE_MESSAGE(status.ok(), status.message());
  CHECK(progress.phases > 0);
  CHECK(progress.steps > 2);
  REQUIRE(session->report().ok());
  CHECK(session->report()->text.ends_with("\n"));
  CHECK(fs::exists(folder.file("out") + "/config.json"));
}

TEST_CASE("session/ a stopped run leaves no output folder, and goes on when it is resumed") {
  const TemporaryFolder folder;
  const auto session = open(options("rtn", folder.file("out")));
  Counter stopped;
  stopped.on_step = [&] { session->cancel(); };
  CHECK(session->run(stopped).code() == Code::kCancelled);
  CHECK_FALSE(fs::exists(folder.file("out")));
  SessionOptions resumed = options("rtn", folder.file("out"));
  resumed.settings.push_back({"run.resume=true", {}, ""});
  Counter by_progress, whole;
  by_progress.stop = true;
  CHECK(open(resumed)->run(by_progress).code() == Code::kCancelled);
  const Status status = open(resumed)->run(whole);
  CHECK_MESSAGE(status.ok(), status.message());
}

TEST_CASE("session/ what a Progress throws is an error of the run") {
  const TemporaryFolder folder;
  const auto session = open(options("rtn", folder.file("out")));
  Counter progress;
  progress.throw_at = 2;
  const Status status = session->run(progress);
  CHECK(status.code() == Code::kInternal);
  CHECK(status.message().find("the caller's own fault") != std::string::npos);
  CHECK_FALSE(fs::exists(folder.file("out")));
}

TEST_CASE("session/ two sessions in two threads give the bits that each gives alone") {
  const TemporaryFolder folder;
  for (const char* plugin : {"rtn", "awq"}) {
    Counter progress;
    REQUIRE(open(options(plugin, folder.file(std::string(plugin) + "-alone")))->run(progress).ok());
  }
  std::vector<std::unique_ptr<Session>> sessions;
  for (const char* plugin : {"rtn", "awq"})
    sessions.push_back(open(options(plugin, folder.file(std::string(plugin) + "-together"))));
  std::vector<Status> results(2);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < 2; ++i) {
    threads.emplace_back([&, i] {
      Counter progress;
      results[i] = sessions[i]->run(progress);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const Status& status : results) CHECK_MESSAGE(status.ok(), status.message());
  for (const std::string plugin : {"rtn", "awq"}) {
    const std::string alone = contents(folder.file(plugin + "-alone"));
    CHECK(alone.size() > 100000);
    CHECK_MESSAGE(alone == contents(folder.file(plugin + "-together")), plugin);
  }
}

TEST_CASE("session/ the C interface gives codes, messages, progress and the report") {
  const TemporaryFolder folder;
  slim_error error{};
  const char* nothing[] = {"compression.plugin=rtn"};
  CHECK(slim_session_open(nullptr, nothing, 1, &error) == nullptr);
  CHECK(error.code == SLIM_INVALID_ARGUMENT);
  CHECK(std::string(error.message).find("model.path") != std::string::npos);
  CHECK(slim_session_open(nullptr, nullptr, 3, nullptr) == nullptr);

  const std::string model = "model.path=" + source("tests/data/toy-qwen3vl"),
                    output = "output.path=" + folder.file("out");
  const char* settings[] = {"compression.plugin=rtn", model.c_str(), output.c_str()};
  slim_session* session = slim_session_open(nullptr, settings, 3, &error);
  REQUIRE_MESSAGE(session, error.message);
  CHECK(std::string(slim_session_json(session)).empty());
  CHECK(slim_session_plan(session, &error) == SLIM_OK);
  CHECK(std::string(slim_session_json(session)).starts_with("{"));

  const auto stop = [](const slim_progress*, void*) -> int32_t { return 1; };
  CHECK(slim_session_run(session, stop, nullptr, &error) == SLIM_CANCELLED);
  CHECK(std::string(slim_session_text(session)).empty());

  int steps = 0;
  const auto count = [](const slim_progress* progress, void* user) -> int32_t {
    CHECK(progress->struct_size == sizeof(slim_progress));
    CHECK(progress->done <= progress->steps);
    *static_cast<int*>(user) += progress->step[0] != '\0';
    return 0;
  };
  CHECK(slim_session_run(session, count, &steps, &error) == SLIM_OK);
  CHECK(error.code == SLIM_OK);
  CHECK(steps > 2);
  CHECK(std::string(slim_session_text(session)).ends_with("\n"));
  slim_session_cancel(session);
  slim_session_close(session);
  slim_session_close(nullptr);
  CHECK(slim_session_run(nullptr, nullptr, nullptr, &error) == SLIM_INVALID_ARGUMENT);
  CHECK(std::string(slim_version()) == "0.1.0");
}
