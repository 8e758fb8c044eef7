#include "progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "interrupt.h"

namespace slim::cli {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// "42 s", "3 min 20 s", "2 h 05 min"
std::string duration(double seconds) {
  const auto total = static_cast<int64_t>(seconds + 0.5);
  char text[48];
  if (total < 60) {
    std::snprintf(text, sizeof text, "%d s", static_cast<int>(total));
  } else if (total < 3600) {
    std::snprintf(text, sizeof text, "%d min %02d s", static_cast<int>(total / 60),
                  static_cast<int>(total % 60));
  } else {
    std::snprintf(text, sizeof text, "%lld h %02d min", static_cast<long long>(total / 3600),
                  static_cast<int>(total % 3600 / 60));
  }
  return text;
}

/// Counts steps; how they are shown is up to its children.
class Counter : public Progress {
 public:
  void begin(std::string_view phase, int64_t steps) override {
    phase_ = phase;
    steps_ = std::max<int64_t>(steps, 0);
    done_ = 0;
    start_ = Clock::now();
    show("");
  }
  void step(std::string_view what) override {
    ++done_;
    show(what);
  }
  void warn(std::string_view message) override {
    std::fprintf(stderr, "slim: warning: %.*s\n", static_cast<int>(message.size()), message.data());
  }
  bool cancelled() override { return interrupted(); }

 protected:
  virtual void show(std::string_view what) = 0;
  bool finished() const { return steps_ > 0 && done_ >= steps_; }
  /// "12/36", and "3 min 20 s left" or the time that the phase took.
  std::string state() const {
    const double elapsed = seconds_since(start_);
    if (steps_ == 0) return std::to_string(done_) + ", " + duration(elapsed);  // nobody knows how many
    std::string text = std::to_string(done_) + "/" + std::to_string(steps_);
    if (finished()) return text + ", " + duration(elapsed);
    if (done_ > 0)
      text += ", " + duration(elapsed / static_cast<double>(done_) * static_cast<double>(steps_ - done_)) +
              " left";
    return text;
  }

  std::string phase_;
  int64_t steps_ = 0, done_ = 0;
  Clock::time_point start_ = Clock::now();
};

class Quiet final : public Counter {
  void show(std::string_view) override {}
};

/// Lines for logs: at most some twenty for a phase.
class Lines final : public Counter {
  void show(std::string_view what) override {
    constexpr int64_t kLines = 20;
    const int64_t every = steps_ > 0 ? std::max<int64_t>(1, steps_ / kLines) : kLines;
    if (done_ % every != 0 && !finished()) return;
    std::fprintf(stderr, "%s %s%s%.*s\n", phase_.c_str(), state().c_str(), what.empty() ? "" : ": ",
                 static_cast<int>(what.size()), what.data());
  }
};

/// One line of a terminal, drawn again and again.
class Bar final : public Counter {
 public:
  ~Bar() override { end_line(); }
  void begin(std::string_view phase, int64_t steps) override {
    end_line();
    Counter::begin(phase, steps);
  }
  void warn(std::string_view message) override {
    std::fputs("\r\x1b[K", stderr);  // the bar makes room, and is drawn again with the next step
    open_ = false;
    Counter::warn(message);
  }

 private:
  void show(std::string_view what) override {
    constexpr double kInterval = 0.1;
    if (open_ && !finished() && seconds_since(drawn_) < kInterval) return;
    drawn_ = Clock::now();
    std::string line =
        phase_ + " " + picture() + " " + state() + (what.empty() ? "" : "  ") + std::string(what);
    if (const size_t columns = width(); line.size() > columns) line.resize(columns);
    std::fprintf(stderr, "\r\x1b[K%s", line.c_str());
    open_ = true;
  }
  std::string picture() const {
    constexpr int64_t kCells = 24;
    const int64_t full = steps_ > 0 ? std::min(kCells, kCells * done_ / steps_) : 0;
    return "[" + std::string(static_cast<size_t>(full), '#') +
           std::string(static_cast<size_t>(kCells - full), '.') + "]";
  }
  void end_line() {
    if (open_) std::fputc('\n', stderr);
    open_ = false;
  }
  static size_t width() {
    winsize size{};
    const bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1;
    return known ? size.ws_col - 1u : 79u;
  }

  bool open_ = false;
  Clock::time_point drawn_;
};

}  // namespace

std::unique_ptr<Progress> make_progress(bool quiet) {
  if (quiet) return std::make_unique<Quiet>();
  if (isatty(STDERR_FILENO)) return std::make_unique<Bar>();
  return std::make_unique<Lines>();
}

}  // namespace slim::cli
