#pragma once
#include <set>
#include <string>

#include "model/weights.h"
#include "slim/plan.hpp"

namespace slim {

/// One block while algorithms work on it: its weights, and what has been changed.
struct BlockState {
  const BlockPlan* plan = nullptr;
  BlockWeights weights;  ///< changed layers are fp32, all others in the stored dtype
  std::set<LayerId> changed_layers;
  std::set<std::string> changed_tensors;  ///< params and biases with new bytes
  bool runs_again = true;  ///< forward passes follow, with the weights as engines will have them
  bool rounded = false;    ///< a change had to be rounded to the stored dtype (float layers, biases)
};

}  // namespace slim
