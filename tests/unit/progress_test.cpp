#include "cli/progress.h"

#include <doctest/doctest.h>
#include <pty.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

using namespace slim;
using namespace slim::cli;

namespace {

/// Everything that is written to stderr while it lives, as to a terminal of so many columns.
class Terminal {
 public:
  explicit Terminal(unsigned short columns) {
    winsize size{24, columns, 0, 0};
    int terminal = -1;
    REQUIRE(openpty(&reader_, &terminal, nullptr, nullptr, &size) == 0);
    before_ = ::dup(STDERR_FILENO);
    ::dup2(terminal, STDERR_FILENO);
    ::close(terminal);
  }
  /// Ends it.
  std::string text() {
    std::fflush(stderr);
    ::dup2(before_, STDERR_FILENO);
    ::close(before_);
    std::string all;
    char buffer[4096];
    for (ssize_t n = 0; (n = ::read(reader_, buffer, sizeof buffer)) > 0;)
      all.append(buffer, static_cast<size_t>(n));
    ::close(reader_);
    return all;
  }

 private:
  int reader_ = -1, before_ = -1;
};

/// What stood on the line, one after the other.
std::vector<std::string> lines_of(const std::string& text) {
  const std::string clear = "\r\x1b[K";
  std::vector<std::string> lines;
  for (size_t at = text.find(clear); at != std::string::npos;) {
    const size_t begin = at + clear.size();
    at = text.find(clear, begin);
    lines.push_back(text.substr(begin, at == std::string::npos ? at : at - begin));
    while (!lines.back().empty() && (lines.back().back() == '\n' || lines.back().back() == '\r'))
      lines.back().pop_back();
  }
  return lines;
}

}  // namespace

TEST_CASE("progress/ a narrow line keeps count and times, and the bar shrinks first") {
  const ProgressLine line{"quantizing", "12/36, 1 min 10 s, 3 min 20 s left", "model.layers.12", 0.5};
  const std::string wide = progress_line(line, 120), narrow = progress_line(line, 40),
                    tiny = progress_line(line, 10);
  CHECK(wide == "quantizing [############............] 12/36, 1 min 10 s, 3 min 20 s left  model.layers.12");
  CHECK(narrow.size() <= 40);
  CHECK(narrow.find(line.state) != std::string::npos);
  CHECK(tiny == "12/36, 1 m");
  for (size_t columns = 0; columns < 130; ++columns) {
    CHECK(progress_line(line, columns).size() <= columns);
    if (columns >= line.state.size())
      CHECK(progress_line(line, columns).find(line.state) != std::string::npos);
  }
}

TEST_CASE("progress/ the bar shows shares of work, not of steps, and names the step at work") {
  Terminal terminal(100);
  {
    const auto progress = make_progress(false);
    progress->begin("quantizing", 4);
    progress->expect({0, 0, 1, 3});  // two that are copied in no time
    progress->step("vision.0");
    progress->step("vision.1");
    std::this_thread::sleep_for(std::chrono::milliseconds(120));
    progress->working_on("layers.0");
  }
  const auto lines = lines_of(terminal.text());
  REQUIRE(!lines.empty());
  CHECK_MESSAGE(lines.back().find("[........................] 2/4") != std::string::npos, lines.back());
  CHECK(lines.back().find("layers.0") != std::string::npos);
  CHECK(lines.back().find("left") == std::string::npos);  // nothing is known of the pace yet
}

TEST_CASE("progress/ elapsed and remaining time tick each second while one step takes long") {
  Terminal terminal(40);
  {
    const auto progress = make_progress(false);
    progress->begin("quantizing", 2);
    progress->expect({1, 1});
    progress->working_on("layers.0");
    std::this_thread::sleep_for(std::chrono::milliseconds(1100));
    progress->step("layers.0");
    progress->working_on("layers.1");
    std::this_thread::sleep_for(std::chrono::milliseconds(2200));
  }
  const auto lines = lines_of(terminal.text());
  bool first_ticks = false, second_ticks = false;
  for (const std::string& line : lines) {
    CHECK(line.size() < 40);
    first_ticks = first_ticks || line.find("0/2, 1 s") != std::string::npos;
    second_ticks = second_ticks || line.find("1/2, 2 s, 0 s left") != std::string::npos;
  }
  CHECK(first_ticks);
  CHECK(second_ticks);
}
