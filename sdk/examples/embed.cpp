// SPDX-License-Identifier: Apache-2.0
// Quantizes a checkpoint from a C++ program: embed_cpp MODEL CALIB OUTPUT
#include <cstdio>
#include <string>

#include "slim/session.hpp"

namespace {

/// Prints a line a step. cancelled() may ask anything that this program knows: a button, a signal, a time limit.
class Lines final : public slim::Progress {
 public:
  void begin(std::string_view phase, int64_t steps) override {
    phase_ = phase;
    steps_ = steps;
    done_ = 0;
  }
  void step(std::string_view what) override {
    std::printf("%s %lld/%lld %.*s\n", phase_.c_str(), static_cast<long long>(++done_), static_cast<long long>(steps_),
                static_cast<int>(what.size()), what.data());
  }
  void warn(std::string_view message) override {
    std::fprintf(stderr, "warning: %.*s\n", static_cast<int>(message.size()), message.data());
  }
  bool cancelled() override { return false; }

 private:
  std::string phase_;
  int64_t steps_ = 0, done_ = 0;
};

int fail(const slim::Status& status) {
  std::fprintf(stderr, "error: %s\n", status.message().c_str());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: %s MODEL CALIB OUTPUT\n", argv[0]);
    return 2;
  }
  slim::SessionOptions options;
  options.settings = {{"compression.plugin", {"awq"}, ""},
                      {"compression.quantization.name", {"w4a16"}, ""},
                      {"compression.quantization.group_size", {"64"}, ""},
                      {"model.path", {argv[1]}, ""},
                      {"dataset.path", {argv[2]}, ""},
                      {"output.path", {argv[3]}, ""}};
  auto session = slim::Session::open(options);
  if (!session.ok()) return fail(session.status());

  const auto plan = (*session)->plan();  // from headers alone: nothing is read or written yet
  if (!plan.ok()) return fail(plan.status());
  std::printf("%s\n", plan->text.c_str());

  Lines progress;
  if (const slim::Status status = (*session)->run(progress); !status.ok()) return fail(status);
  const auto report = (*session)->report();
  if (!report.ok()) return fail(report.status());
  std::printf("%s", report->text.c_str());
  return 0;
}
