#pragma once
#include <c10/core/Event.h>
#include <c10/core/Stream.h>

#include <functional>
#include <future>
#include <optional>
#include <vector>

#include "slim/adapter.hpp"
#include "slim/status.hpp"

namespace slim {

/// Copies between the host and a device that overlap with what the device computes: through pinned memory, on a stream beside the
/// default one. add() all tensors, start(), and wait before the first use. What is given for the host's own device is handed back as
/// it is. start() may be called in another thread than the waits; a set of copies is used once.
class SLIM_API DeviceCopies {
 public:
  explicit DeviceCopies(at::Device device) : device_(device) {}
  /// Waits on the host for copies that nothing has waited for.
  ~DeviceCopies();
  DeviceCopies(const DeviceCopies&) = delete;
  DeviceCopies& operator=(const DeviceCopies&) = delete;

  /// The tensor's copy on the device; its values come with the copies.
  at::Tensor to_device(const at::Tensor& host);
  /// The tensor's copy in pinned memory of the host.
  at::Tensor to_host(const at::Tensor& on_device);
  /// Begins; the copies come after everything that the device's default stream was given before.
  void start();
  /// The device computes with the copies from here on: its default stream waits, the host does not. Keeps what is copied from.
  void wait_on_device();
  /// The host reads the copies from here on. Forgets all tensors.
  void wait_on_host();

 private:
  at::Device device_;
  std::vector<std::pair<at::Tensor, at::Tensor>> copies_;  ///< from, to
  std::optional<c10::Event> done_;
};

/// A batch's tensors of numbers among them; integers stay on the host.
SLIM_API Carry carry_to_device(const Carry&, DeviceCopies&);

/// Gives every batch to `pass` on the device, in turn, and what it made of it to `keep` on the host (empty: nobody wants it). With
/// `overlap` the next batch comes while one is computed, and the last one goes; `keep` then runs in another thread.
/// `moved`: why a batch is still on the host, where the device has no memory for it.
class BatchStream {
 public:
  using Batch = std::function<const Carry&(size_t)>;
  using Pass = std::function<Status(size_t, Carry&, const Status& moved)>;
  using Keep = std::function<Status(size_t, Carry)>;
  BatchStream(Batch batch, Pass pass, Keep keep)
      : batch_(std::move(batch)), pass_(std::move(pass)), keep_(std::move(keep)) {}
  SLIM_API Status run(size_t count, at::Device device, bool overlap) const;

 private:
  Status in_turn(size_t count, at::Device) const;
  Status overlapping(size_t count, at::Device) const;
  std::future<Status> take_back(size_t i, Carry there, at::Device) const;

  Batch batch_;
  Pass pass_;
  Keep keep_;
};

}  // namespace slim
