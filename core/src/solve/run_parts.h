#pragma once
#include <memory>
#include <string_view>
#include <vector>

#include "calibrate/kept_statistics.h"
#include "calibrate/propagation.h"
#include "checkpoint/async_writer.h"
#include "model/block_loader.h"
#include "plan/job.h"
#include "solve/output_run.h"

namespace slim {

using OutputRuns = std::vector<std::unique_ptr<OutputRun>>;

/// Forwards notes to the report of every output.
class NotesOfAll final : public Notes {
 public:
  explicit NotesOfAll(const OutputRuns& outputs) : outputs_(outputs) {}
  void note(std::string_view kind, std::string_view where, std::string_view detail) override;
  void metric(std::string_view where, std::string_view key, double value) override;

 private:
  const OutputRuns& outputs_;
};

/// What a job is done with, for the blocks, the record and the report. The parts refer to each other: neither copied nor moved.
struct RunParts {
  RunParts(std::unique_ptr<const Job> opened, Progress& told);
  RunParts(const RunParts&) = delete;
  RunParts& operator=(const RunParts&) = delete;

  std::unique_ptr<const Job> job;
  Progress& progress;
  OutputRuns outputs;  ///< the first holds the record of the run
  NotesOfAll notes{outputs};
  BlockLoader loader;
  Propagation propagation;
  KeptStatistics statistics;
  AsyncWriter jobs;  ///< last: its thread ends before anything that its jobs use
};

}  // namespace slim
