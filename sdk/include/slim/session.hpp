#pragma once
/// slim inside another program: link slim::sdk (see docs/embed.md). The C interface to the same is slim/slim.h.
#include <memory>
#include <string>
#include <vector>

#include "slim/export.hpp"
#include "slim/progress.hpp"
#include "slim/status.hpp"

namespace slim {

/// One key of the configuration (`slim --help-keys` lists them), or an option of a plugin ("awq.grid").
struct Setting {
  /// The key ("model.path"). With empty `values`: an assignment as the command line's --set takes it
  /// ("compression.plugin=awq,gptq"; the entries of lists are separated by commas).
  std::string key;
  std::vector<std::string> values;  ///< the value; the entries of a list, each taken as it is
  std::string origin;               ///< leads error messages ("--scheme", "line 3"); may be empty
};

/// What a Session is opened with.
struct SessionOptions {
  std::string config_file;        ///< TOML file, read first; empty: none
  std::vector<Setting> settings;  ///< applied in this order, over the file
};

/// One quantization job: a configuration and the plugins that serve it. Sessions share nothing but loaded plugin code, so
/// several may live, and run, at the same time in threads of their own; one session is used from one thread, cancel() apart.
/// `run.threads` and `run.kernels` set what LibTorch keeps for the whole process. Nothing is thrown.
class SLIM_API Session {
 public:
  /// Reads and checks the configuration, finds the plugins and checks their options. Touches neither checkpoint nor output.
  /// kInvalidArgument: an unknown key, a wrong value, no model, no plugin or an unknown one; kNotFound: the file;
  /// kIncompatible, kCorrupt: a plugin cannot be loaded.
  static Result<std::unique_ptr<Session>> open(const SessionOptions& options);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  /// What would happen to each tensor, peak memory and output size, from headers alone. Reads no weight, writes nothing.
  Result<Report> plan();
  /// The job itself; blocks until it is done. `progress` is used from this thread only and must outlive the call. On failure no
  /// output folder is left, but beside it the blocks that were finished: a run with run.resume=true goes on there, one with
  /// output.overwrite=true begins anew. kCancelled after cancel() or Progress::cancelled().
  Status run(Progress& progress);
  /// Asks a run in another thread to stop at its next safe point. Any thread, any time; without a run it does nothing.
  void cancel();
  /// The report of the last successful run; kInvalidArgument before it.
  Result<Report> report() const;

 private:
  struct State;
  explicit Session(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace slim
