#include "slim/slim.h"

#include <algorithm>
#include <cstring>

#include "slim/export.hpp"
#include "slim/session.hpp"
#include "slim/version.hpp"

struct slim_session {
  std::unique_ptr<slim::Session> session;
  slim::Report report;
};

namespace {
using slim::Code;
using slim::Status;

static_assert(SLIM_OK == static_cast<int>(Code::kOk) &&
              SLIM_INVALID_ARGUMENT == static_cast<int>(Code::kInvalidArgument) &&
              SLIM_NOT_FOUND == static_cast<int>(Code::kNotFound) &&
              SLIM_UNSUPPORTED == static_cast<int>(Code::kUnsupported) &&
              SLIM_INCOMPATIBLE == static_cast<int>(Code::kIncompatible) &&
              SLIM_CORRUPT == static_cast<int>(Code::kCorrupt) &&
              SLIM_OUT_OF_MEMORY == static_cast<int>(Code::kOutOfMemory) &&
              SLIM_IO == static_cast<int>(Code::kIo) && SLIM_NUMERIC == static_cast<int>(Code::kNumeric) &&
              SLIM_VERIFICATION == static_cast<int>(Code::kVerification) &&
              SLIM_CANCELLED == static_cast<int>(Code::kCancelled) &&
              SLIM_INTERNAL == static_cast<int>(Code::kInternal));

/// The longest beginning of a UTF-8 text that fits, never the middle of a character.
void copy_text(const std::string& text, char* into, size_t size) {
  size_t length = std::min(text.size(), size - 1);
  while (length < text.size() && length > 0 && (static_cast<unsigned char>(text[length]) & 0xC0) == 0x80)
    --length;
  std::memcpy(into, text.data(), length);
  into[length] = '\0';
}

int32_t report_to(slim_error* error, const Status& status) {
  const auto code = static_cast<int32_t>(status.code());
  if (error) {
    error->code = code;
    copy_text(status.message(), error->message, sizeof error->message);
  }
  return code;
}

/// Progress as calls of a C function.
class CallbackProgress final : public slim::Progress {
 public:
  CallbackProgress(slim_progress_callback callback, void* user) : callback_(callback), user_(user) {}
  void begin(std::string_view phase, int64_t steps) override {
    phase_ = phase;
    done_ = 0;
    steps_ = std::max<int64_t>(steps, 0);
    tell("", nullptr);
  }
  void step(std::string_view what) override {
    ++done_;
    tell(std::string(what), nullptr);
  }
  void warn(std::string_view message) override {
    const std::string text(message);
    tell("", text.c_str());
  }
  bool cancelled() override { return stop_; }

 private:
  void tell(const std::string& step, const char* warning) {
    if (!callback_) return;
    const slim_progress progress{sizeof(slim_progress), phase_.c_str(), step.c_str(), warning, done_, steps_};
    stop_ = callback_(&progress, user_) != 0 || stop_;
  }

  slim_progress_callback callback_;
  void* user_;
  std::string phase_;
  int64_t done_ = 0, steps_ = 0;
  bool stop_ = false;
};

slim::Result<std::unique_ptr<slim::Session>> open_session(const char* config_file,
                                                          const char* const* settings, size_t count) {
  slim::SessionOptions options;
  if (config_file) options.config_file = config_file;
  for (size_t i = 0; i < count; ++i) {
    if (!settings || !settings[i])
      return Status(Code::kInvalidArgument, "setting " + std::to_string(i) + " is a null pointer");
    options.settings.push_back({settings[i], {}, ""});
  }
  return slim::Session::open(options);
}

const Status kNoSession(Code::kInvalidArgument, "the session is a null pointer");

}  // namespace

extern "C" {

SLIM_API const char* slim_version(void) { return SLIM_VERSION; }

SLIM_API slim_session* slim_session_open(const char* config_file, const char* const* settings,
                                         size_t n_settings, slim_error* error) {
  auto session = open_session(config_file, settings, n_settings);
  report_to(error, session.status());
  return session.ok() ? new slim_session{*std::move(session), {}} : nullptr;
}

SLIM_API int32_t slim_session_plan(slim_session* session, slim_error* error) {
  if (!session) return report_to(error, kNoSession);
  auto report = session->session->plan();
  session->report = report.ok() ? *report : slim::Report{};
  return report_to(error, report.status());
}

SLIM_API int32_t slim_session_run(slim_session* session, slim_progress_callback callback, void* user,
                                  slim_error* error) {
  if (!session) return report_to(error, kNoSession);
  CallbackProgress progress(callback, user);
  session->report = {};
  const Status status = session->session->run(progress);
  if (!status.ok()) return report_to(error, status);
  auto report = session->session->report();
  if (report.ok()) session->report = *std::move(report);
  return report_to(error, report.status());
}

SLIM_API void slim_session_cancel(slim_session* session) {
  if (session) session->session->cancel();
}

SLIM_API const char* slim_session_text(const slim_session* session) {
  return session ? session->report.text.c_str() : "";
}

SLIM_API const char* slim_session_json(const slim_session* session) {
  return session ? session->report.json.c_str() : "";
}

SLIM_API void slim_session_close(slim_session* session) { delete session; }

}  // extern "C"
