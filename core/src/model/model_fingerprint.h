#pragma once
#include <string>

#include "model/model.h"
#include "util/fingerprint.h"

namespace slim {

/// The entry of weight_files_stamp() in a run's fingerprint.
inline constexpr const char* kWeightFiles = "the model's weight files";
/// Hashes sizes and times of the last change of the model's weight files.
SLIM_API std::string weight_files_stamp(const Model&);
/// Hashes config.json, and of every tensor name, type, shape and first bytes.
SLIM_API Result<Fingerprint> model_fingerprint(const Model&);

}  // namespace slim
