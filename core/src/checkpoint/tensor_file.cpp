#include "checkpoint/tensor_file.h"

#include <ATen/ATen.h>

#include "checkpoint/file.h"
#include "checkpoint/safetensors.h"

namespace slim {

Status write_tensors(const std::string& path,
                     const std::vector<std::pair<std::string, at::Tensor>>& tensors) {
  std::vector<TensorSpec> specs;
  for (const auto& [name, tensor] : tensors) {
    const auto dtype = from_scalar_type(tensor.scalar_type());
    if (!dtype) return {Code::kInternal, path + ": '" + name + "' has a type that safetensors cannot hold"};
    specs.push_back({name, *dtype, tensor.sizes().vec()});
  }
  SLIM_ASSIGN(const File file, File::create(path));
  const std::string header = safetensors_header(specs);
  SLIM_TRY(file.write_at(0, std::as_bytes(std::span(header))));
  auto offset = static_cast<int64_t>(header.size());
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor plain = tensor.cpu().contiguous();
    SLIM_TRY(file.write_at(offset, {static_cast<const std::byte*>(plain.const_data_ptr()), plain.nbytes()}));
    offset += static_cast<int64_t>(plain.nbytes());
  }
  return file.sync();
}

Result<TensorMap> read_tensors(const std::string& path) {
  SLIM_ASSIGN(const File file, File::open_read(path));
  SLIM_ASSIGN(const auto stored, read_safetensors_header(file));
  TensorMap tensors;
  for (const StoredTensor& entry : stored) {
    const auto type = to_scalar_type(entry.spec.dtype);
    if (!type)
      return Status(Code::kCorrupt,
                    path + ": '" + entry.spec.name + "' has a type that is not computed with");
    at::Tensor tensor = at::empty(entry.spec.shape, *type);
    SLIM_TRY(file.read_at(entry.begin, {static_cast<std::byte*>(tensor.data_ptr()), tensor.nbytes()}));
    tensors[entry.spec.name] = std::move(tensor);
  }
  return tensors;
}

}  // namespace slim
