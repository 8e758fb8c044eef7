#include "progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <numeric>
#include <optional>
#include <thread>
#include <vector>

#include "interrupt.h"
#include "util/text.h"

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

/// Counts steps by the work that they are expected to be; how they are shown is up to its children.
class Counter : public Progress {
 public:
  void begin(std::string_view phase, int64_t steps) override {
    phase_ = phase;
    steps_ = std::max<int64_t>(steps, 0);
    done_ = skipped_ = 0;
    last_step_ = 0;
    work_.clear();
    what_.clear();
    works_ = false;
    start_ = Clock::now();
    show();
  }
  void expect(const std::vector<double>& work) override {
    const bool usable =
        static_cast<int64_t>(work.size()) == steps_ && std::accumulate(work.begin(), work.end(), 0.0) > 0;
    if (usable) work_ = work;
  }
  void working_on(std::string_view what) override {
    if (!works_) {  // steps before the first that is worked on were done by an earlier run
      works_ = true;
      skipped_ = done_;
      last_step_ = 0;
      start_ = Clock::now();
    }
    what_ = terminal_text(what);
    show();
  }
  void step(std::string_view what) override {
    ++done_;
    what_ = terminal_text(what);
    last_step_ = seconds_since(start_);
    show();
  }
  void warn(std::string_view message) override {
    std::fprintf(stderr, "slim: warning: %s\n", terminal_text(message).c_str());
  }
  bool cancelled() override { return interrupted(); }

 protected:
  virtual void show() = 0;
  bool finished() const { return steps_ > 0 && done_ >= steps_; }
  /// Work of the steps [begin, end) as a share of the phase's.
  double share(int64_t begin, int64_t end) const {
    if (work_.empty())
      return static_cast<double>(end - begin) / static_cast<double>(std::max<int64_t>(1, steps_));
    return std::accumulate(work_.begin() + begin, work_.begin() + end, 0.0) /
           std::accumulate(work_.begin(), work_.end(), 0.0);
  }
  double share_done() const { return share(0, std::min(done_, steps_)); }
  /// "12/36, 1 min 10 s, 3 min 20 s left": steps, elapsed, remaining.
  std::string state() const {
    const double elapsed = seconds_since(start_);
    if (steps_ == 0) return std::to_string(done_) + ", " + duration(elapsed);  // nobody knows how many
    std::string text = std::to_string(done_) + "/" + std::to_string(steps_) + ", " + duration(elapsed);
    const std::optional<double> left = seconds_left(elapsed);
    return left && !finished() ? text + ", " + duration(*left) + " left" : text;
  }
  const std::string& phase() const { return phase_; }
  const std::string& what() const { return what_; }
  int64_t steps() const { return steps_; }
  int64_t done() const { return done_; }

 private:
  /// By the pace of the steps since the phase began. A step that takes longer than that pace says moves what is left with it.
  std::optional<double> seconds_left(double elapsed) const {
    constexpr double kLeastShare = 0.01;  // before, a guess would be wild
    const double made = share(skipped_, std::min(done_, steps_)),
                 left = share(std::min(done_, steps_), steps_);
    if (made < kLeastShare) return std::nullopt;
    const double pace = last_step_ > 0 && done_ > skipped_ ? last_step_ / made : elapsed / made;
    return std::max(pace * left - (elapsed - last_step_), 0.0);
  }

  std::string phase_, what_;
  int64_t steps_ = 0, done_ = 0, skipped_ = 0;
  bool works_ = false;        // working_on() has been called
  std::vector<double> work_;  // by step; empty: all alike
  double last_step_ = 0;      // seconds from the start to the last step's end
  Clock::time_point start_ = Clock::now();
};

class Quiet final : public Counter {
  void show() override {}
};

/// Lines for logs: at most some twenty for a phase.
class Lines final : public Counter {
  void show() override {
    constexpr int64_t kLines = 20;
    const int64_t every = steps() > 0 ? std::max<int64_t>(1, steps() / kLines) : kLines;
    if ((done() % every != 0 && !finished()) || done() == shown_) return;
    shown_ = done();
    std::fprintf(stderr, "%s %s%s%s\n", phase().c_str(), state().c_str(), what().empty() ? "" : ": ",
                 what().c_str());
  }
  int64_t shown_ = -1;
};

/// One line of a terminal, drawn again and again: with each step, and each second.
class Bar final : public Counter {
 public:
  Bar() : ticker_([this] { tick(); }) {}
  ~Bar() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    stopped_.notify_all();
    ticker_.join();
    end_line();
  }
  void begin(std::string_view phase, int64_t steps) override {
    const std::lock_guard lock(mutex_);
    end_line();
    Counter::begin(phase, steps);
  }
  void expect(const std::vector<double>& work) override {
    const std::lock_guard lock(mutex_);
    Counter::expect(work);
  }
  void working_on(std::string_view what) override {
    const std::lock_guard lock(mutex_);
    Counter::working_on(what);
  }
  void step(std::string_view what) override {
    const std::lock_guard lock(mutex_);
    Counter::step(what);
  }
  void warn(std::string_view message) override {
    const std::lock_guard lock(mutex_);
    std::fputs("\r\x1b[K", stderr);  // the bar makes room, and is drawn again with the next step
    open_ = false;
    Counter::warn(message);
  }

 private:
  void tick() {
    std::unique_lock lock(mutex_);
    while (!stopped_.wait_for(lock, std::chrono::seconds(1), [this] { return stop_; })) {
      if (open_ && !finished()) draw();
    }
  }
  void show() override {
    constexpr double kInterval = 0.1;
    if (open_ && !finished() && seconds_since(drawn_) < kInterval) return;
    draw();
  }
  void draw() {
    drawn_ = Clock::now();
    std::fprintf(stderr, "\r\x1b[K%s",
                 progress_line({phase(), state(), what(), share_done()}, width()).c_str());
    std::fflush(stderr);
    open_ = true;
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

  std::mutex mutex_;  // everything below and of Counter: the ticker reads it
  bool open_ = false, stop_ = false;
  Clock::time_point drawn_;
  std::condition_variable stopped_;
  std::thread ticker_;  // last: it uses all others
};

}  // namespace

/// What is worth most comes first: count and times, then the bar, then what is being worked on.
std::string progress_line(const ProgressLine& line, size_t columns) {
  constexpr size_t kLongestBar = 24, kShortestBar = 4;
  std::string text = line.phase + " ";
  if (text.size() + line.state.size() > columns) text.clear();
  const size_t room =
      columns - std::min(columns, text.size() + line.state.size() + 3);  // brackets and a space
  if (room >= kShortestBar) {
    const size_t cells = std::min(kLongestBar, room);
    const auto full = std::min(cells, static_cast<size_t>(static_cast<double>(cells) * line.share));
    text += "[" + std::string(full, '#') + std::string(cells - full, '.') + "] ";
  }
  text += line.state;
  if (!line.what.empty()) text += "  " + line.what;
  if (text.size() > columns) text.resize(columns);
  return text;
}

std::unique_ptr<Progress> make_progress(bool quiet) {
  if (quiet) return std::make_unique<Quiet>();
  if (isatty(STDERR_FILENO)) return std::make_unique<Bar>();
  return std::make_unique<Lines>();
}

}  // namespace slim::cli
