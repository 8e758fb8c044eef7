#pragma once
#include <string>

#include "slim/adapter.hpp"

namespace slim {

/// Keeps activations in files without names, mapped into memory: they read as any tensor, the system writes them out and reads them
/// back, and their space is freed with the last tensor that uses them.
class SLIM_API Spill {
 public:
  /// In this folder; `active`: false keeps everything as it is.
  Spill(std::string folder, bool active) : folder_(std::move(folder)), active_(active) {}
  bool active() const { return active_; }
  /// The same values; large tensors lie in files.
  Result<Carry> store(Carry carry) const;
  /// Gives the memory of a stored carry back until it is read again; does nothing to others.
  static void release(const Carry& carry);

 private:
  std::string folder_;
  bool active_;
};

}  // namespace slim
