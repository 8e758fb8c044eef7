#pragma once
#include <memory>
#include <string>

#include "plugin/registry.h"
#include "resume/journal.h"
#include "slim/progress.hpp"
#include "solve/run_parts.h"

namespace slim {

/// The record of a run, from which another process goes on: begins it or takes it up, records each block, and says what is left after an
/// error. Used from the run's thread.
class Recovery {
 public:
  /// Both must outlive it.
  Recovery(RunParts& parts, PluginRegistry& registry)
      : parts_(parts), job_(*parts.job), registry_(registry) {}

  /// True if an earlier process made the whole output, and ended before the end of the record.
  bool completed() const;
  /// Takes up the record of an interrupted run, if run.resume asks for it and there is one; else begins: output folders, samples, files.
  Status begin_or_resume();
  /// Number of finished blocks.
  int64_t blocks() const { return journal_->blocks(); }
  /// True if run.stop_after_blocks are finished, and not all.
  bool stopped() const;
  /// Records that one more block is finished. Where the next one needs nothing of it, and nobody waits for a block, the run goes on while its
  /// tensors are on their way, and the record is made behind them.
  Status finish_block();
  /// Checks that the model's files are those that the run began with: what was read at different times must have been one model.
  Status check_input_unchanged() const;
  /// Ends every output and the file of statistics, and deletes the record; all blocks are finished. Steps that an interrupted run has done
  /// are left out.
  Status finish();
  /// Deletes the record.
  Status remove_record() const;
  /// Adds to an error what is left of the run: everything finished, unless the input or the plugins are at fault; then nothing.
  Status explain(const Status&);
  /// What a run says that stops where it can be resumed.
  Report stopped_report() const;

 private:
  Status check_leftovers(const std::string& partial, int64_t blocks);
  Status begin(const std::string& partial);
  Status resume(const std::string& partial);
  Status check_inputs();
  Status begin_propagation();
  Status open_statistics();
  Status create_statistics();
  Status finish_statistics();
  Result<Fingerprint> fingerprint();
  Result<RunState> state_now();
  Status record(const RunState&);
  void keep_partial(bool keep);
  std::string partial() const;
  bool output_done(size_t output) const;
  bool statistics_done() const;

  RunParts& parts_;
  const Job& job_;
  PluginRegistry& registry_;
  std::unique_ptr<Journal> journal_;
  bool started_ = false;  ///< errors from here on come with what is kept
};

}  // namespace slim
