#pragma once
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "checkpoint/writer.h"

namespace slim {

/// Does work for the output (packing, copying, writing) in a thread of its own, in the order in which it was given, while the
/// run goes on. Holds at most `max_bytes` of pending tensors, or one larger job alone: then submit() waits.
class SLIM_API AsyncWriter {
 public:
  /// Enough for the thread to be always at work; slim plan counts it.
  static constexpr int64_t kMaxBytes = int64_t{64} << 20;
  explicit AsyncWriter(int64_t max_bytes = kMaxBytes);
  ~AsyncWriter();
  /// `bytes`: what the job keeps alive. Returns the first error of an earlier job; then nothing runs any more.
  Status submit(int64_t bytes, std::function<Status()> job);
  /// Waits for all jobs; their first error.
  Status drain();
  /// Forgets what has not begun, and waits for what has.
  void cancel();

 private:
  void work();

  int64_t max_bytes_, pending_bytes_ = 0;
  bool stop_ = false, busy_ = false;
  Status status_;
  std::deque<std::pair<int64_t, std::function<Status()>>> jobs_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::thread thread_;
};

}  // namespace slim
