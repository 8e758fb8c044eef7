// Operators: every one runs on the CPU, on the device's memory where it lies. Strides and alignment are those of the device's tensors,
// so that results are the bits of the CPU. A tensor of the host beside one of the device is an error.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/CPUAllocator.h>
#include <torch/library.h>

#include <cstring>
#include <map>

#include "memory.h"
#include "streams.h"

namespace standin {
namespace {

const c10::Device kStandinDevice(c10::kPrivateUse1, 0);

bool on_device(const at::Tensor& tensor) {
  return tensor.defined() && tensor.device().type() == c10::kPrivateUse1;
}
Range range_of(const c10::Storage& storage) { return {host_address(storage.data()), storage.nbytes()}; }

void copy_layout(const at::Tensor& from, const at::Tensor& to) {
  to.unsafeGetTensorImpl()->set_sizes_and_strides(from.sizes(), from.strides());
  to.unsafeGetTensorImpl()->set_storage_offset(from.storage_offset());
}

at::Tensor on_storage(const c10::Storage& storage, const at::Tensor& like, c10::DispatchKey key) {
  at::Tensor tensor =
      at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storage), c10::DispatchKeySet(key), like.dtype());
  copy_layout(like, tensor);
  return tensor;
}

/// The arguments of one call as tensors of the CPU over the same memory, and its results back.
class Call {
 public:
  explicit Call(std::string name) : name_(std::move(name)) {}

  c10::IValue to_host(const c10::IValue& value) {
    if (value.isTensor()) return host(value.toTensor());
    if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(host(tensor));
      return list;
    }
    if (value.isList() && value.type()->isSubtypeOf(*c10::ListType::ofOptionalTensors())) {
      c10::List<std::optional<at::Tensor>> list;
      for (const auto& tensor : value.toOptionalTensorVector())
        list.push_back(tensor ? std::optional(host(*tensor)) : std::nullopt);
      return list;
    }
    if (value.isDevice()) return c10::Device(c10::kCPU);
    return value;
  }

  void check() const {
    TORCH_CHECK(!device_arguments_ || strange_.empty(), "stand-in device: ", name_, " takes ", strange_,
                " of the host beside tensors of the device");
  }

  c10::IValue to_device(const c10::IValue& value) {
    if (value.isTensor()) return device(value.toTensor());
    if (!value.isTensorList()) return value;
    c10::List<at::Tensor> list;
    for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(device(tensor));
    return list;
  }

  /// Arguments whose shape the operator has changed: in place, or by resizing what it writes to.
  void adopt_shapes() {
    for (const auto& [original, alias] : tensors_) {
      const bool moved = alias.storage().data() != host_address(original.storage().data());
      if (moved) original.unsafeGetTensorImpl()->set_storage_keep_dtype(copied(alias).storage());
      const bool same = alias.sizes() == original.sizes() && alias.strides() == original.strides() &&
                        alias.storage_offset() == original.storage_offset();
      if (!same) copy_layout(alias, original);
    }
  }

 private:
  at::Tensor host(const at::Tensor& tensor) {
    if (!on_device(tensor)) {
      const bool scalar = !tensor.defined() || tensor.dim() == 0;  // LibTorch wraps numbers in such
      if (!scalar) strange_ = "a tensor of shape " + c10::str(tensor.sizes());
      return tensor;
    }
    device_arguments_ = true;
    for (const auto& [original, alias] : tensors_) {
      if (original.is_same(tensor)) return alias;
    }
    touch(range_of(tensor.storage()));
    const at::Tensor alias = on_storage(host_storage(tensor.storage()), tensor, c10::DispatchKey::CPU);
    tensors_.emplace_back(tensor, alias);
    return alias;
  }

  const c10::Storage& host_storage(const c10::Storage& storage) {
    auto& entry = storages_[storage.unsafeGetStorageImpl()];
    if (!entry.second) {
      c10::DataPtr data(host_address(storage.data()), c10::Device(c10::kCPU));
      entry = {storage, c10::Storage(c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(data),
                                     c10::GetCPUAllocator(), /*resizable=*/true)};
    }
    return entry.second;
  }

  static at::Tensor copied(const at::Tensor& tensor) {
    c10::Storage storage(c10::Storage::use_byte_size_t(), tensor.storage().nbytes(),
                         memory().allocate(tensor.storage().nbytes()), &memory(), true);
    if (tensor.storage().nbytes() > 0)
      std::memcpy(host_address(storage.data()), tensor.storage().data(), tensor.storage().nbytes());
    touch(range_of(storage));
    return on_storage(storage, tensor, c10::DispatchKey::PrivateUse1);
  }

  at::Tensor device(const at::Tensor& tensor) const {
    if (!tensor.defined()) return tensor;
    for (const auto& [original, alias] : tensors_) {
      if (alias.is_same(tensor)) return original;
    }
    for (const auto& [impl, pair] : storages_) {
      if (pair.second.unsafeGetStorageImpl() == tensor.storage().unsafeGetStorageImpl())
        return on_storage(pair.first, tensor, c10::DispatchKey::PrivateUse1);
    }
    return copied(tensor);
  }

  std::string name_, strange_;
  bool device_arguments_ = false;
  std::vector<std::pair<at::Tensor, at::Tensor>> tensors_;                       // of the device, of the CPU
  std::map<c10::StorageImpl*, std::pair<c10::Storage, c10::Storage>> storages_;  // the same
};

void run_on_cpu(const c10::OperatorHandle& op, c10::Stack* stack) {
  TORCH_CHECK(current_stream() == kDefaultStream, "stand-in device: ", op.operator_name(),
              " on a stream that is for copies");
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  count_operator();
  Call call(c10::toString(op.operator_name()));
  const size_t count = op.schema().arguments().size(), first = stack->size() - count;
  for (size_t i = first; i < stack->size(); ++i) (*stack)[i] = call.to_host((*stack)[i]);
  call.check();
  op.callBoxed(stack);
  call.adopt_shapes();
  for (size_t i = first; i < stack->size(); ++i) (*stack)[i] = call.to_device((*stack)[i]);
}

at::Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_generic(size, &memory(), kKeys, c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_strided_generic(size, stride, &memory(), kKeys, c10::dtype_or_default(dtype));
}

at::Tensor in_host_memory(const at::Tensor& tensor) {
  if (!on_device(tensor)) return tensor;
  c10::DataPtr data(host_address(tensor.storage().data()), c10::Device(c10::kCPU));
  return on_storage(c10::Storage(c10::Storage::use_byte_size_t(), tensor.storage().nbytes(), std::move(data)),
                    tensor, c10::DispatchKey::CPU);
}

/// Every copy that touches the device. Asynchronous as on CUDA: on a stream of its own, between the device and pinned memory.
at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  const bool to_device = on_device(to), both = to_device && on_device(from);
  const at::Tensor& device = to_device ? to : from;
  const at::Tensor& host = to_device ? from : to;
  const at::Tensor source = in_host_memory(from), target = in_host_memory(to);
  const bool deferred =
      non_blocking && !both && current_stream() != kDefaultStream && is_pinned(host.storage().data());
  if (!both) count_copy(to_device, deferred, from.nbytes());
  if (deferred) {
    if (!to_device)
      std::memset(target.storage().mutable_data(), 0xFF,
                  target.storage().nbytes());  // nobody may read it yet
    defer(current_stream(), range_of(device.storage()), {host.storage().data(), host.storage().nbytes()},
          [source, target] {
            const at::AutoDispatchBelowADInplaceOrView no_autograd;
            target.copy_(source);
          });
    return to;
  }
  for (const at::Tensor& tensor : {from, to}) {
    if (on_device(tensor)) touch(range_of(tensor.storage()));
  }
  target.copy_(source);
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  // Operators that LibTorch takes apart differently for devices which it does not know.
  for (const char* name : {"convolution", "native_layer_norm", "scaled_dot_product_attention", "resize_"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
  }
}

}  // namespace
}  // namespace standin
