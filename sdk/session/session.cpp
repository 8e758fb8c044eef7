#include "slim/session.hpp"

#include <atomic>

#include "commands/commands.h"
#include "config/run_config.h"
#include "plugin/guard.h"

namespace slim {
namespace {

Status apply(const Setting& setting, RunConfig& config) {
  Status status = setting.values.empty() ? set_config_value(setting.key, config)
                                         : set_config_key(setting.key, setting.values, config);
  return setting.origin.empty() ? status : std::move(status).in(setting.origin);
}

Status require(bool there, const std::string& key, const std::string& flag, const std::string& what) {
  if (there) return {};
  return Status(Code::kInvalidArgument, key + " or --" + flag + " is missing: " + what);
}

Result<RunConfig> read(const SessionOptions& options) {
  RunConfig config;
  if (!options.config_file.empty()) SLIM_TRY(read_config_file(options.config_file, config));
  for (const Setting& setting : options.settings) SLIM_TRY(apply(setting, config));
  SLIM_TRY(require(!config.model.empty(), "model.path", "model", "the folder of a Hugging Face checkpoint"));
  SLIM_TRY(require(!config.plugins.empty() || !config.outputs.empty(), "compression.plugin", "plugin",
                   "an algorithm; `slim plugins list` shows them"));
  SLIM_TRY(check_plugin_options(config));
  return config;
}

/// Plugins' own exceptions are caught where they are called; this is for all others (out of memory, a Progress that throws).
template <class Fn>
auto caught(Fn&& fn) -> decltype(fn()) {
  try {
    return fn();
  } catch (...) {
    return current_exception_status();
  }
}

/// Everything that can be found and checked before the checkpoint is opened.
Status check_plugins(const RunConfig& config, PluginRegistry& registry) {
  for (const std::string& name : config.plugins) {
    SLIM_ASSIGN(const PluginInfo info, registry.find(SLIM_ALGORITHM, name));
    const auto found = config.plugin_options.find(info.id);
    const Options raw = found == config.plugin_options.end() ? Options{} : found->second;
    SLIM_TRY(registry.checked_options(SLIM_ALGORITHM, name, raw).status());
  }
  if (!config.adapter.empty()) SLIM_TRY(registry.find(SLIM_ADAPTER, config.adapter).status());
  if (!config.format.empty()) SLIM_TRY(registry.find(SLIM_FORMAT, config.format).status());
  return config.backend == "auto" ? Status{} : registry.find(SLIM_BACKEND, config.backend).status();
}

/// The caller's progress, which cancel() stops too.
class Cancellable final : public Progress {
 public:
  Cancellable(Progress& inner, const std::atomic<bool>& stop) : inner_(inner), stop_(stop) {}
  void begin(std::string_view phase, int64_t steps) override { inner_.begin(phase, steps); }
  void step(std::string_view what) override { inner_.step(what); }
  void warn(std::string_view message) override { inner_.warn(message); }
  bool cancelled() override { return stop_.load() || inner_.cancelled(); }

 private:
  Progress& inner_;
  const std::atomic<bool>& stop_;
};

}  // namespace

struct Session::State {
  explicit State(RunConfig run) : config(std::move(run)), registry(config.plugin_dirs) {}
  const RunConfig config;
  PluginRegistry registry;
  std::atomic<bool> stop = false;
  Report report;
};

Session::Session(std::unique_ptr<State> state) : state_(std::move(state)) {}
Session::~Session() = default;

Result<std::unique_ptr<Session>> Session::open(const SessionOptions& options) {
  return caught([&]() -> Result<std::unique_ptr<Session>> {
    SLIM_ASSIGN(RunConfig config, read(options));
    auto state = std::make_unique<State>(std::move(config));
    SLIM_TRY(check_plugins(state->config, state->registry));
    return std::unique_ptr<Session>(new Session(std::move(state)));
  });
}

Result<Report> Session::plan() {
  return caught([&] { return slim::plan(state_->config, state_->registry); });
}

Status Session::run(Progress& progress) {
  SLIM_TRY(require(!state_->config.output.empty() || !state_->config.outputs.empty(), "output.path", "output",
                   "the folder to write"));
  state_->stop = false;
  return caught([&]() -> Status {
    Cancellable cancellable(progress, state_->stop);
    SLIM_ASSIGN(state_->report, quantize(state_->config, state_->registry, cancellable));
    return {};
  });
}

void Session::cancel() { state_->stop = true; }

Result<Report> Session::report() const {
  if (state_->report.json.empty())
    return Status(Code::kInvalidArgument, "there is no report: no run has ended well yet");
  return state_->report;
}

}  // namespace slim
