#pragma once
#include "model/model.h"
#include "slim/algorithm.hpp"

namespace slim {

/// Notes what of a checkpoint is not as a plain model has it: quantized weights, tensors beside the model, tables and copies that are
/// left out. Reads a tied head that is stored twice, to tell whether both are the same.
Status note_source(const Model&, Notes&);

}  // namespace slim
