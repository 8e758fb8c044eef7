#include "compress/rank_file.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace slim {
namespace {

constexpr size_t kLengthBytes = 8;

/// The same header, its text padded with blanks to `bytes`.
std::string padded(std::string header, int64_t bytes) {
  header.resize(static_cast<size_t>(bytes), ' ');
  const uint64_t length = static_cast<uint64_t>(bytes) - kLengthBytes;
  for (size_t i = 0; i < kLengthBytes; ++i) header[i] = static_cast<char>(length >> (8 * i) & 0xff);
  return header;
}

}  // namespace

Result<RankFile> RankFile::create(const std::string& path, std::vector<TensorSpec> fixed,
                                  const std::vector<TensorSpec>& variable) {
  SLIM_ASSIGN(File opened, File::create(path));
  RankFile file(std::move(opened));
  std::stable_sort(fixed.begin(), fixed.end(),
                   [](const auto& a, const auto& b) { return dtype_bits(a.dtype) > dtype_bits(b.dtype); });
  std::vector<TensorSpec> largest = fixed;
  largest.insert(largest.end(), variable.begin(), variable.end());
  file.header_bytes_ = file.end_ = static_cast<int64_t>(safetensors_header(largest).size());
  for (const TensorSpec& spec : fixed) {
    file.fixed_offset_[spec.name] = file.end_;
    file.end_ += byte_size(spec).value_or(0);
  }
  for (const TensorSpec& spec : variable) file.variable_[spec.name] = spec;
  file.specs_ = std::move(fixed);
  return file;
}

Status RankFile::write(int64_t offset, const at::Tensor& value) {
  const at::Tensor plain = value.contiguous();
  if (plain.nbytes() == 0) return {};
  return file_.write_at(offset, {static_cast<const std::byte*>(plain.const_data_ptr()), plain.nbytes()});
}

Status RankFile::put(const std::string& name, const at::Tensor& value) {
  if (const auto fixed = fixed_offset_.find(name); fixed != fixed_offset_.end()) {
    SLIM_TRY(write(fixed->second, value));
    fixed_offset_.erase(fixed);
    return {};
  }
  const auto variable = variable_.find(name);
  if (variable == variable_.end())
    return {Code::kInternal, file_.path() + ": tensor '" + name + "' was not announced, or comes twice"};
  if (value.numel() > variable->second.shape[0])
    return {Code::kInternal, file_.path() + ": tensor '" + name + "' is larger than announced"};
  SLIM_TRY(write(end_, value));
  end_ += static_cast<int64_t>(value.nbytes());
  specs_.push_back({name, variable->second.dtype, value.sizes().vec()});
  variable_.erase(variable);
  return {};
}

Status RankFile::finish() {
  if (!fixed_offset_.empty() || !variable_.empty()) {
    const std::string& name = fixed_offset_.empty() ? variable_.begin()->first : fixed_offset_.begin()->first;
    return {Code::kInternal, file_.path() + ": tensor '" + name + "' was announced and did not come"};
  }
  const std::string header = padded(safetensors_header(specs_), header_bytes_);
  SLIM_TRY(file_.write_at(0, std::as_bytes(std::span(header))));
  return file_.sync();
}

Result<TensorFile> TensorFile::open(const std::string& path) {
  SLIM_ASSIGN(File opened, File::open_read(path));
  TensorFile file(std::move(opened));
  SLIM_ASSIGN(auto tensors, read_safetensors_header(file.file_));
  for (StoredTensor& tensor : tensors) {
    const std::string name = tensor.spec.name;
    if (!file.tensors_.emplace(name, std::move(tensor)).second)
      return Status(Code::kCorrupt, path + ": tensor '" + name + "' comes twice");
  }
  return file;
}

Result<at::Tensor> TensorFile::read(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end())
    return Status(Code::kCorrupt, file_.path() + ": tensor '" + name + "' is missing");
  const auto dtype = to_scalar_type(found->second.spec.dtype);
  if (!dtype)
    return Status(Code::kUnsupported,
                  file_.path() + ": tensor '" + name + "' has elements smaller than a byte");
  at::Tensor tensor = at::empty(found->second.spec.shape, *dtype);
  SLIM_TRY(file_.read_at(found->second.begin, {static_cast<std::byte*>(tensor.data_ptr()), tensor.nbytes()}));
  return tensor;
}

}  // namespace slim
