#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "slim/ops.hpp"

/// Every operator of slim/ops.hpp with inputs that reach its corners. Who checks a backend (`slim plugins validate`, the backends' own
/// tests) evaluates the table twice, with reference kernels on the CPU and with the backend's on its device, and compares.
namespace slim::op_table {

struct Case {
  std::string op, variant;
  /// Largest |difference| over the largest |reference|; 0: the same bits.
  double bound = 0;
  std::function<std::vector<at::Tensor>(at::Device)> run;  ///< results on the CPU
};

/// All cases; `seed` of everything random in them.
std::vector<Case> table(uint64_t seed = 0);
/// The results of the reference kernels on the CPU, in the table's order. Kernels are forced back to what they were.
std::vector<std::vector<at::Tensor>> expected(const std::vector<Case>& cases);

/// The largest difference as Case::bound means it; infinity for another shape or type.
double difference(const std::vector<at::Tensor>& expected, const std::vector<at::Tensor>& found);
/// The bound for a device: without a kernel of its own LibTorch's operators there divide and sum in another order than on the CPU.
double bound_on(const Case&, at::Device, bool has_kernel);

/// Normal numbers with a channel of outliers.
at::Tensor random(at::IntArrayRef shape, uint64_t seed, at::ScalarType type = at::kFloat);
/// Shapes and codes that a weight of 37 x 208 is rounded with, by name.
std::vector<std::pair<std::string, ops::Rounding>> roundings(at::ScalarType scale_dtype);

}  // namespace slim::op_table
