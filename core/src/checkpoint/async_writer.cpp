#include "checkpoint/async_writer.h"

#include "plugin/guard.h"

namespace slim {

AsyncWriter::AsyncWriter(int64_t max_bytes) : max_bytes_(max_bytes), thread_([this] { work(); }) {}

AsyncWriter::~AsyncWriter() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    jobs_.clear();
  }
  changed_.notify_all();
  thread_.join();
}

Status AsyncWriter::submit(int64_t bytes, std::function<Status()> job) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock,
                [&] { return !status_.ok() || pending_bytes_ == 0 || pending_bytes_ + bytes <= max_bytes_; });
  if (!status_.ok()) return status_;
  pending_bytes_ += bytes;
  jobs_.emplace_back(bytes, std::move(job));
  changed_.notify_all();
  return {};
}

Status AsyncWriter::drain() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !status_.ok() || (jobs_.empty() && !busy_); });
  return status_;
}

void AsyncWriter::cancel() {
  std::unique_lock lock(mutex_);
  for (const auto& [bytes, job] : jobs_) pending_bytes_ -= bytes;
  jobs_.clear();
  changed_.wait(lock, [&] { return !busy_; });
}

void AsyncWriter::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stop_ || !jobs_.empty(); });
    if (stop_) return;
    auto [bytes, job] = std::move(jobs_.front());
    jobs_.pop_front();
    busy_ = true;
    lock.unlock();
    Status status = guarded("writing", job);
    job = nullptr;
    lock.lock();
    busy_ = false;
    pending_bytes_ -= bytes;
    if (!status.ok() && status_.ok()) {
      status_ = std::move(status);
      jobs_.clear();
    }
    changed_.notify_all();
  }
}

}  // namespace slim
