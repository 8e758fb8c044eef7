#pragma once
#include <string>

#include "compress/weight_codec.h"

namespace slim {

/// Compresses an int8 matrix with CANN's own program, whose byte stream is not public: Ascend's kernels unpack it. The
/// program is called as `TOOL K1 N1 1 1 1 0 0 IN OUT INDEX INFO`: fractals along k and n, low sparsity, no tiling of
/// its own; IN holds the matrix in NZ order, OUT its compressed bytes, INDEX 8 bytes a tile, INFO three integers of 4
/// or 8 bytes: tile rows, tile columns, compressed length. `scratch` is a folder for these files. kInternal if the
/// program fails, kCorrupt if what it wrote contradicts itself.
SLIM_API Result<CompressedWeight> cann_compress(const std::string& tool, const std::string& scratch,
                                                const at::Tensor& weight);

}  // namespace slim
