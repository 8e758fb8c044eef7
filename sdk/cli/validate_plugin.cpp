// slim plugins validate FILE: every check of the conformance kit in a process of its own.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "conformance/check.h"
#include "interrupt.h"
#include "output.h"
#include "plugin/guard.h"
#include "plugin/scan.h"
#include "plugins.h"
#include "util/nearest.h"

namespace slim::cli {
namespace {

using conformance::Check;
using conformance::Subject;
using Json = nlohmann::ordered_json;

constexpr std::chrono::seconds kTimeLimit(120);  // for one check
constexpr size_t kMostOutput = 64 * 1024;        // of what a check prints

struct Verdict {
  std::string check, summary, verdict, message;  ///< verdict: "passed", "failed", "skipped"
};

// ---- one check, in this process ---------------------------------------------------------------------------------------

/// The last line that a checking process prints.
std::string verdict_line(const std::string& verdict, const std::string& message) {
  return Json{{"verdict", verdict}, {"message", message}}.dump(-1, ' ', false,
                                                               Json::error_handler_t::replace);
}

std::string run_here(const Check& check, const Subject& subject) {
  const auto outcome = guarded(check.id, [&] { return check.run(subject); });
  if (!outcome.ok()) return verdict_line("failed", outcome.status().message());
  return verdict_line(outcome->skipped ? "skipped" : "passed", outcome->message);
}

// ---- one check, in a process of its own -------------------------------------------------------------------------------

/// What a process left behind.
struct Exit {
  int status = 0;
  bool timed_out = false;
  std::string output;
};

/// Reads until the process closes its end, or the time is up.
void read_output(int descriptor, Exit& exit) {
  const auto end = std::chrono::steady_clock::now() + kTimeLimit;
  char buffer[4096];
  for (;;) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now()).count();
    pollfd poller{descriptor, POLLIN, 0};
    const int ready = left > 0 ? poll(&poller, 1, static_cast<int>(left)) : 0;
    if (ready < 0 && errno == EINTR && !interrupted()) continue;
    if (ready <= 0) {
      exit.timed_out = true;
      return;
    }
    const ssize_t count = read(descriptor, buffer, sizeof buffer);
    if (count <= 0) return;
    exit.output.append(buffer, static_cast<size_t>(count));
    if (exit.output.size() > kMostOutput)
      exit.output.erase(0, exit.output.size() - kMostOutput);  // the verdict stands at the end
  }
}

/// The check in a copy of this process, which has loaded LibTorch, but no plugin, and whose only other thread waits for a signal:
/// copying it is safe, and many times faster than starting the program again.
Result<Exit> run_process(const Check& check, const Subject& subject) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0)
    return Status(Code::kIo, std::string("no pipe can be made: ") + std::strerror(errno));
  std::fflush(nullptr);  // or the copy prints it again
  const pid_t child = fork();
  if (child < 0) return Status(Code::kIo, std::string("no process can be started: ") + std::strerror(errno));
  if (child == 0) {
    setpgid(0, 0);  // what it starts ends with it
    dup2(ends[1], STDOUT_FILENO);
    dup2(ends[1], STDERR_FILENO);
    std::printf("\n%s\n", run_here(check, subject).c_str());
    run_has_ended();
    std::exit(0);  // as a program ends, with all that libraries do then
  }
  close(ends[1]);
  Exit exit;
  read_output(ends[0], exit);
  if (exit.timed_out) kill(-child, SIGKILL);
  close(ends[0]);
  while (waitpid(child, &exit.status, 0) < 0 && errno == EINTR) {
  }
  return exit;
}

/// The verdict that the process printed, or how it ended instead.
Verdict judge(const Check& check, const Exit& exit) {
  Verdict verdict{check.id, check.summary, "failed", ""};
  const size_t begin = exit.output.rfind("{\"verdict\"");
  const Json line =
      begin == std::string::npos ? Json() : Json::parse(exit.output.substr(begin), nullptr, false);
  const std::string last_words = exit.output.substr(0, begin).substr(0, 300);
  if (exit.timed_out) {
    verdict.message = "it did not end within " + std::to_string(kTimeLimit.count()) + " seconds";
  } else if (WIFSIGNALED(exit.status)) {
    verdict.message = std::string("it ended the process: ") + strsignal(WTERMSIG(exit.status)) +
                      (last_words.empty() ? "" : ": " + last_words);
  } else if (!line.is_object()) {
    verdict.message = "it ended the process with exit code " + std::to_string(WEXITSTATUS(exit.status)) +
                      (last_words.empty() ? "" : ": " + last_words);
  } else {
    verdict.verdict = line.value("verdict", "failed");
    verdict.message = line.value("message", "");
  }
  return verdict;
}

Result<Verdict> run_apart(const Check& check, const Subject& subject) {
  SLIM_ASSIGN(const Exit exit, run_process(check, subject));
  return judge(check, exit);
}

// ---- the command ------------------------------------------------------------------------------------------------------

/// --except ID=REASON: checks that do not count, and why.
Result<std::map<std::string, std::string>> exceptions(const Arguments& arguments,
                                                      const std::vector<Check>& checks) {
  std::map<std::string, std::string> reasons;
  std::vector<std::string> ids;
  for (const Check& check : checks) ids.push_back(check.id);
  for (const std::string& text : arguments.all("except")) {
    const size_t equals = text.find('=');
    const std::string id = text.substr(0, equals);
    if (equals == std::string::npos || equals + 1 == text.size()) {
      return Status(Code::kInvalidArgument, "--except " + text + ": expected CHECK=REASON");
    }
    if (std::find(ids.begin(), ids.end(), id) == ids.end()) {
      return Status(Code::kInvalidArgument,
                    "--except " + text + ": no check '" + id + "'" + did_you_mean(id, ids));
    }
    reasons[id] = text.substr(equals + 1);
  }
  return reasons;
}

Result<Subject> subject_of(const Arguments& arguments) {
  const std::vector<std::string>& words = arguments.positional();
  if (words.size() != 2)
    return Status(Code::kInvalidArgument, "expected `slim plugins validate FILE`, a plugin's shared library");
  Subject subject;
  SLIM_ASSIGN(const int64_t seed, arguments.integer("seed", 0, 0));
  subject.seed = static_cast<uint64_t>(seed);
  subject.model = arguments.text("model");
  std::error_code error;
  const auto path = std::filesystem::canonical(words[1], error);
  if (error) return Status(Code::kInvalidArgument, words[1] + ": " + error.message());
  subject.info = read_plugin_info(path.string());
  return subject;
}

std::string text_of(const Verdict& verdict) {
  std::string line = verdict.verdict + std::string(9 - verdict.verdict.size(), ' ') + verdict.check;
  line.resize(std::max<size_t>(line.size() + 1, 36), ' ');
  return line + (verdict.message.empty() ? verdict.summary : verdict.message) + "\n";
}

int summarize(const Subject& subject, const std::vector<Verdict>& verdicts, const Arguments& arguments) {
  const bool only_failed = arguments.has("only-failed");
  std::map<std::string, int> counts{{"passed", 0}, {"failed", 0}, {"skipped", 0}};
  std::string text;
  Json entries = Json::array();
  for (const Verdict& verdict : verdicts) {
    ++counts[verdict.verdict];
    if (only_failed && verdict.verdict != "failed") continue;
    text += text_of(verdict);
    entries.push_back(Json{{"check", verdict.check},
                           {"summary", verdict.summary},
                           {"verdict", verdict.verdict},
                           {"message", verdict.message}});
  }
  const Json json{{"file", subject.info.path},    {"kind", kind_name(subject.info.kind)},
                  {"id", subject.info.id},        {"seed", subject.seed},
                  {"passed", counts["passed"]},   {"failed", counts["failed"]},
                  {"skipped", counts["skipped"]}, {"checks", entries}};
  text += kind_name(subject.info.kind) + " " + subject.info.id + ": " + std::to_string(counts["passed"]) +
          " passed, " + std::to_string(counts["failed"]) + " failed, " + std::to_string(counts["skipped"]) +
          " skipped (seed " + std::to_string(subject.seed) + ")\n";
  const int printed =
      print(arguments.has("json") ? json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n" : text);
  return printed != kDone ? printed : counts["failed"] > 0 ? kNotVerified : kDone;
}

int run_all(const Subject& subject, const std::vector<Check>& checks,
            const std::map<std::string, std::string>& except, const Arguments& arguments) {
  std::vector<Verdict> verdicts;
  catch_interrupts(/*resumable=*/false);
  for (const Check& check : checks) {
    if (interrupted()) return fail(Status(Code::kCancelled, "interrupted"));
    if (const auto found = except.find(check.id); found != except.end()) {
      verdicts.push_back({check.id, check.summary, "skipped", "by request: " + found->second});
      continue;
    }
    const auto verdict = run_apart(check, subject);
    if (!verdict.ok()) return fail(verdict.status());
    verdicts.push_back(*verdict);
    if (check.id == "library/loads" && verdict->verdict == "failed") break;  // nothing else can be looked at
  }
  return summarize(subject, verdicts, arguments);
}

int run_one(const Check& check, const Subject& subject) {
  const std::string line = run_here(check, subject);
  const int printed = print(line + "\n");
  return printed != kDone ? printed : Json::parse(line)["verdict"] == "failed" ? kNotVerified : kDone;
}

}  // namespace

std::vector<Flag> validate_plugin_flags() {
  return {{"model", "DIR", "validate: a small checkpoint that an adapter serves", ""},
          {"seed", "N", "validate: of everything random (default 0)", ""},
          {"only-failed", "", "validate: list failed checks alone", ""},
          {"except", "CHECK=REASON", "validate: leave a check out, and say why (repeatable)", "", true},
          {"check", "CHECK", "validate: this check alone, in this process (for debuggers)", ""}};
}

int validate_plugin(const Arguments& arguments) {
  const auto subject = subject_of(arguments);
  if (!subject.ok()) return fail(subject.status());
  const std::vector<Check> checks = conformance::checks_for(subject->info.kind);
  const auto except = exceptions(arguments, checks);
  if (!except.ok()) return fail(except.status());
  if (!arguments.has("check")) return run_all(*subject, checks, *except, arguments);
  std::vector<std::string> ids;
  for (const Check& check : checks) {
    if (check.id == arguments.text("check")) return run_one(check, *subject);
    ids.push_back(check.id);
  }
  const std::string wanted = arguments.text("check");
  return fail(Status(Code::kInvalidArgument, "--check " + wanted + ": no such check" +
                                                 did_you_mean(wanted, ids) + " (there are: " + join(ids) +
                                                 ")"));
}

}  // namespace slim::cli
