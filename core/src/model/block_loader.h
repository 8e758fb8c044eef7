#pragma once
#include <future>
#include <memory>

#include "model/device_copies.h"
#include "model/weights.h"
#include "slim/algorithm.hpp"

namespace slim {

/// Reads the weights of blocks, the next one's in another thread while a block is made, and moves them to the device.
class BlockLoader {
 public:
  /// Both must outlive it. `send_ahead`: the device has room for the next block's weights beside those of the present one.
  BlockLoader(const WeightSource& source, at::Device device, bool send_ahead, Notes& notes)
      : source_(source), device_(device), send_ahead_(send_ahead), notes_(notes) {}

  /// Begins with the block that take() will want next.
  void begin(const BlockPlan&);
  /// The block's weights on the device; those that it has no room for lie on the host, which is noted.
  Result<BlockWeights> take(const BlockPlan&);
  /// As many of the weights as the device has room for: all or none.
  BlockWeights on_device(const BlockPlan&, BlockWeights);

 private:
  /// On the host, or on their way to the device.
  struct Coming {
    explicit Coming(at::Device device) : copies(device) {}
    DeviceCopies copies;
    BlockWeights weights;
  };
  Result<std::unique_ptr<Coming>> read(const BlockPlan&) const;
  static void send(Coming&);

  const WeightSource& source_;
  at::Device device_;
  bool send_ahead_;
  Notes& notes_;
  std::future<Result<std::unique_ptr<Coming>>> next_;
};

}  // namespace slim
