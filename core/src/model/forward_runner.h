#pragma once
#include <functional>
#include <string>

#include "model/device_copies.h"
#include "model/exec.h"

namespace slim {

/// Takes batches that lie on the host through forward passes: each in turn on the device, with the copies of the next and of the last one
/// overlapped where wanted. Used from one thread.
class SLIM_API ForwardRunner {
 public:
  struct Options {
    at::ScalarType dtype = at::kFloat;  ///< of forward passes
    at::Device device = at::kCPU;
    bool overlap = true;       ///< a batch is copied while another is computed
    bool all_experts = false;  ///< every expert sees every token
  };
  /// The batch of an index, on the host.
  using Batch = BatchStream::Batch;
  /// Computes with one batch: it lies where the exec computes, and becomes the result.
  using Pass = std::function<Status(size_t, BlockExec&, Carry&)>;
  /// Takes a result, on the host; with overlap in another thread. Empty: results are dropped.
  using Keep = BatchStream::Keep;

  /// `source` and `notes` must outlive the runner.
  ForwardRunner(const WeightSource& source, const Options& options, Notes& notes);

  /// Runs `pass` over `count` batches on the device. A batch for which the device has no memory is computed on the host instead, and
  /// noted under `where`: `pass` must leave nothing behind when it fails.
  Status run(const std::string& where, size_t count, const Batch& batch, const Pass& pass, const Keep& keep);
  /// Runs `pass` over `count` batches with one exec, which this runner owns; being out of memory is an error.
  Status run_with(BlockExec& exec, size_t count, const Batch& batch, const Pass& pass,
                  const Keep& keep) const;

  /// Computes on the device of the options.
  BlockExec& exec() { return exec_; }
  BlockExec& host_exec() { return host_exec_; }
  /// Unsets statistics and overrides and forgets region inputs, after a pass that was broken off.
  void reset();
  /// Forgets tensors outside blocks that were read.
  void release_globals();

 private:
  Options options_;
  Notes& notes_;
  BlockExec exec_, host_exec_;
};

}  // namespace slim
