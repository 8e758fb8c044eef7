#include "checkpoint/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include "util/strict_json.h"

namespace slim {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kLengthBytes = 8;
constexpr int64_t kMaxHeader = 100'000'000;  // the limit of the reference implementation
constexpr std::string_view kAgain = "; download or write the file again";

Status corrupt_header(const std::string& message) { return Status(Code::kCorrupt, message); }

std::string quoted(const std::string& name) {
  return Json(name).dump(-1, ' ', false, Json::error_handler_t::replace);
}

Result<std::string> header_text(const File& file, int64_t size) {
  if (size < kLengthBytes) {
    return corrupt_header("has " + std::to_string(size) +
                          " bytes, a safetensors file at least 8: it is truncated" + std::string(kAgain));
  }
  std::array<unsigned char, kLengthBytes> prefix{};
  SLIM_TRY(file.read_at(0, std::as_writable_bytes(std::span(prefix))));
  if (std::memcmp(prefix.data(), "version ", kLengthBytes) == 0) {
    return corrupt_header("is a Git LFS pointer, not the weights; fetch them with `git lfs pull`");
  }
  uint64_t length = 0;
  for (size_t i = 0; i < prefix.size(); ++i) length |= uint64_t{prefix[i]} << (8 * i);
  if (length > static_cast<uint64_t>(kMaxHeader)) {
    return corrupt_header("claims a header of " + std::to_string(length) + " bytes, at most " +
                          std::to_string(kMaxHeader) + " are allowed: it is no safetensors file or damaged" +
                          std::string(kAgain));
  }
  if (static_cast<int64_t>(length) > size - kLengthBytes) {
    return corrupt_header("claims a header of " + std::to_string(length) + " bytes, but only " +
                          std::to_string(size - kLengthBytes) + " follow: it is truncated" +
                          std::string(kAgain));
  }
  std::string text(length, '\0');
  SLIM_TRY(file.read_at(kLengthBytes, std::as_writable_bytes(std::span(text))));
  if (!text.starts_with('{')) return corrupt_header("header does not begin with '{'" + std::string(kAgain));
  return text;
}

std::optional<int64_t> whole_number(const Json& value) {
  if (!value.is_number_unsigned() || value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX))
    return std::nullopt;
  return value.get<int64_t>();
}

Result<std::vector<int64_t>> whole_numbers(const Json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_array())
    return corrupt_header("has no list '" + std::string(key) + "'");
  std::vector<int64_t> numbers;
  for (const Json& value : *found) {
    const auto number = whole_number(value);
    if (!number)
      return corrupt_header("'" + std::string(key) + "' holds " + value.dump() +
                            ", expected whole numbers from 0");
    numbers.push_back(*number);
  }
  return numbers;
}

Result<StoredTensor> parse_tensor(const std::string& name, const Json& entry) {
  if (!entry.is_object())
    return corrupt_header("is " + std::string(entry.type_name()) + ", expected an object");
  StoredTensor tensor;
  tensor.spec.name = name;
  const auto dtype = entry.find("dtype");
  if (dtype == entry.end() || !dtype->is_string()) return corrupt_header("has no text 'dtype'");
  const auto known = dtype_from_name(dtype->get_ref<const std::string&>());
  if (!known) return corrupt_header("has the dtype " + dtype->dump() + ", which safetensors does not have");
  tensor.spec.dtype = *known;
  SLIM_ASSIGN(tensor.spec.shape, whole_numbers(entry, "shape"));
  SLIM_ASSIGN(const auto offsets, whole_numbers(entry, "data_offsets"));
  if (offsets.size() != 2)
    return corrupt_header("'data_offsets' holds " + std::to_string(offsets.size()) + " numbers, expected 2");
  tensor.begin = offsets[0];
  tensor.end = offsets[1];
  const std::string range = "[" + std::to_string(tensor.begin) + ", " + std::to_string(tensor.end) + "]";
  if (tensor.begin > tensor.end) return corrupt_header("'data_offsets' " + range + " end before they begin");
  const auto bytes = byte_size(tensor.spec);
  const std::string what = std::string(dtype_name(*known)) + " " + shape_string(tensor.spec.shape);
  if (!bytes)
    return corrupt_header(what + " is no size that can be: it overflows, or is no whole number of bytes");
  if (tensor.end - tensor.begin != *bytes) {
    return corrupt_header("'data_offsets' " + range + " hold " + std::to_string(tensor.end - tensor.begin) +
                          " bytes, but " + what + " needs " + std::to_string(*bytes));
  }
  return tensor;
}

Status check_name(const std::string& name) {
  const auto control = [](unsigned char c) { return c < 0x20 || c == 0x7f; };
  if (name.empty()) return corrupt_header("has an empty name");
  if (std::ranges::any_of(name, control)) return corrupt_header("has control characters in its name");
  return {};
}

// `tensors` sorted by their place: each begins where the one before ends, and the last ends with the file.
Status check_coverage(const std::vector<StoredTensor>& tensors, int64_t data_bytes) {
  int64_t end = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const auto& [spec, tensor_begin, tensor_end] = tensors[i];
    if (tensor_begin < end) {
      return corrupt_header("tensor " + quoted(spec.name) + " begins at data byte " +
                            std::to_string(tensor_begin) + " inside tensor " +
                            quoted(tensors[i - 1].spec.name) + ", which ends at " + std::to_string(end) +
                            std::string(kAgain));
    }
    if (tensor_begin > end) {
      return corrupt_header("data bytes " + std::to_string(end) + " to " + std::to_string(tensor_begin) +
                            ", before tensor " + quoted(spec.name) + ", belong to no tensor" +
                            std::string(kAgain));
    }
    end = tensor_end;
  }
  if (end > data_bytes) {
    return corrupt_header("is truncated: the header describes " + bytes_string(end) +
                          " of tensor data, the file has " + bytes_string(data_bytes) + std::string(kAgain));
  }
  if (end < data_bytes) {
    return corrupt_header("has " + bytes_string(data_bytes - end) +
                          " after the last tensor that belong to no tensor" + std::string(kAgain));
  }
  return {};
}

Result<std::vector<StoredTensor>> parse_header(const File& file) {
  SLIM_ASSIGN(const int64_t size, file.size());
  SLIM_ASSIGN(const std::string text, header_text(file, size));
  auto parsed = parse_strict_json(text);
  if (!parsed.ok())
    return Status(Code::kCorrupt, "header: " + parsed.status().message() + std::string(kAgain));
  std::vector<StoredTensor> tensors;
  for (const auto& [name, entry] : parsed->items()) {
    if (name == "__metadata__") {
      const auto is_text = [](const Json& value) { return value.is_string(); };
      if (!entry.is_object() || !std::ranges::all_of(entry, is_text))
        return corrupt_header("'__metadata__' must map text to text");
      continue;
    }
    auto tensor = parse_tensor(name, entry);
    Status status = tensor.ok() ? check_name(name) : tensor.status();
    if (!status.ok())
      return Status(status.code(), status.message() + std::string(kAgain)).in("tensor " + quoted(name));
    tensors.push_back(*std::move(tensor));
  }
  std::ranges::stable_sort(tensors, {},
                           [](const StoredTensor& tensor) { return std::pair(tensor.begin, tensor.end); });
  const int64_t data = kLengthBytes + static_cast<int64_t>(text.size());
  SLIM_TRY(check_coverage(tensors, size - data));
  for (auto& tensor : tensors) {
    tensor.begin += data;
    tensor.end += data;
  }
  return tensors;
}

}  // namespace

Result<std::vector<StoredTensor>> read_safetensors_header(const File& file) {
  auto tensors = parse_header(file);
  if (tensors.ok() || tensors.status().message().starts_with(file.path())) return tensors;
  return tensors.status().in(file.path());
}

std::string safetensors_header(const std::vector<TensorSpec>& tensors) {
  std::string text = R"({"__metadata__":{"format":"pt"})";
  int64_t begin = 0;
  for (const auto& spec : tensors) {
    const int64_t end = begin + byte_size(spec).value();
    text +=
        "," + quoted(spec.name) + ":" +
        Json{{"dtype", dtype_name(spec.dtype)}, {"shape", spec.shape}, {"data_offsets", {begin, end}}}.dump();
    begin = end;
  }
  text += "}";
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string prefix;
  for (int i = 0; i < kLengthBytes; ++i) prefix += static_cast<char>(text.size() >> (8 * i) & 0xff);
  return prefix + text;
}

}  // namespace slim
