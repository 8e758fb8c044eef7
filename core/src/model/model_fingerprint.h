#pragma once
#include <string>

#include "model/model.h"
#include "util/fingerprint.h"

namespace slim {

/// The entry of weight_files_stamp() in a run's fingerprint.
inline constexpr const char* kWeightFiles = "the model's weight files";
/// Hashes sizes and times of the last change of the model's weight files.
SLIM_API std::string weight_files_stamp(const Model&);
/// Hashes config.json, tokenizer, chat template and preprocessor files, and of every tensor name, type, shape and first bytes.
SLIM_API Result<Fingerprint> model_fingerprint(const Model&);

/// Hashes every byte that a block is made from; of the first block, those of the tensors outside of blocks too (embeddings: what it was fed).
/// Reads them from the files.
SLIM_API Result<uint64_t> block_checksum(const Model&, const BlockPlan&);

}  // namespace slim
