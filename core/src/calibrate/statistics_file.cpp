#include "calibrate/statistics_file.h"

#include <ATen/ATen.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "checkpoint/leftovers.h"
#include "util/device_moves.h"

namespace slim {
namespace {

constexpr const char* kFingerprint = "fingerprint";
/// Of the header: a statistic has a handful of tensors, each with a long name.
constexpr int64_t kHeaderBytesOfStatistic = 2048, kSmallestHeader = 4096, kLargestHeader = 90'000'000;
constexpr int64_t kLengthBytes = 8;

std::string prefix_of(const BlockPlan& block, const Port& port, const std::string& id) {
  return block.name + "/" + port.name + "/" + id + "/";
}

std::span<const std::byte> bytes_of(const at::Tensor& tensor) {
  return {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()};
}

/// The header, padded with spaces to `size` bytes.
Result<std::string> padded_header(const std::vector<TensorSpec>& tensors, int64_t size,
                                  const std::string& path) {
  std::string text = safetensors_header(tensors).substr(kLengthBytes);
  const int64_t length = size - kLengthBytes;
  if (static_cast<int64_t>(text.size()) > length) {
    return Status(Code::kInternal, path + ": the names of " + std::to_string(tensors.size()) +
                                       " tensors take " + std::to_string(text.size()) + " bytes, " +
                                       std::to_string(length) + " were reserved");
  }
  text.resize(static_cast<size_t>(length), ' ');
  std::string prefix;
  for (int i = 0; i < kLengthBytes; ++i)
    prefix += static_cast<char>(static_cast<uint64_t>(length) >> (8 * i) & 0xff);
  return prefix + text;
}

/// Two runs may not write one file.
Status lock(const File& file) {
  if (file.lock()) return {};
  return {Code::kInvalidArgument,
          file.path() + ": another process is writing these statistics; wait for it or choose another file"};
}

std::string folder_of(const std::string& path) {
  return std::filesystem::absolute(path).parent_path().string();
}

/// What no statistic holds, or null. The extremes of a port that nothing has reached are infinite, all of them.
const char* damage_of(const at::Tensor& tensor) {
  if (!at::isFloatingType(tensor.scalar_type()) || tensor.numel() == 0) return nullptr;
  const auto [low, high] = at::aminmax(tensor);  // either is NaN if any element is
  const auto least = low.item<double>(), most = high.item<double>();
  if (std::isnan(least) || std::isnan(most)) return "NaN";
  const bool of_nothing = tensor.numel() > 1 && least == most;
  return (std::isinf(least) || std::isinf(most)) && !of_nothing ? "Inf" : nullptr;
}

/// An empty file that nobody else writes; what a crash has left of one is emptied.
Result<File> own_file(const std::string& path) {
  auto left = File::open_write(path);
  if (!left.ok()) left = File::create(path);
  if (!left.ok()) return left;
  SLIM_TRY(lock(*left));
  if (::ftruncate(left->fd(), 0) != 0) return system_error(path, "empty", errno);
  return left;
}

}  // namespace

Result<std::unique_ptr<StatisticsWriter>> StatisticsWriter::create(const std::string& path,
                                                                   int64_t statistics) {
  const int64_t header = std::min(kLargestHeader, kSmallestHeader + statistics * kHeaderBytesOfStatistic);
  SLIM_ASSIGN(File file, own_file(path + ".partial"));
  add_leftover(file.path());
  if (::ftruncate(file.fd(), header) != 0) return system_error(file.path(), "reserve space", errno);
  SLIM_TRY(sync_folder(folder_of(path)));
  return std::unique_ptr<StatisticsWriter>(new StatisticsWriter(path, std::move(file), header));
}

Result<std::unique_ptr<StatisticsWriter>> StatisticsWriter::resume(const std::string& path,
                                                                   const std::string& state) try {
  const auto json = nlohmann::json::parse(state);
  SLIM_ASSIGN(File file, File::open_write(path + ".partial"));
  SLIM_TRY(lock(file));
  std::unique_ptr<StatisticsWriter> writer(
      new StatisticsWriter(path, std::move(file), json.at("header").get<int64_t>()));
  writer->keep_partial_ = true;
  writer->end_ = json.at("end").get<int64_t>();
  SLIM_ASSIGN(const int64_t size, writer->file_.size());
  if (size < writer->end_)
    return Status(
        Code::kCorrupt,
        path + ".partial: is shorter than the interrupted run left it; start again without --resume");
  for (const auto& entry : json.at("tensors")) {
    writer->written_.push_back({entry.at(0).get<std::string>(),
                                dtype_from_name(entry.at(1).get<std::string>()).value(),
                                entry.at(2).get<std::vector<int64_t>>()});
  }
  return writer;
} catch (const std::exception& error) {
  return Status(Code::kCorrupt,
                path + ": its state is damaged: " + error.what() + "; start again without --resume");
}

Result<std::string> StatisticsWriter::state() const {
  SLIM_TRY(file_.sync());
  auto tensors = nlohmann::json::array();
  for (const TensorSpec& spec : written_)
    tensors.push_back({spec.name, std::string(dtype_name(spec.dtype)), spec.shape});
  return nlohmann::json{{"header", header_bytes_}, {"end", end_}, {"tensors", tensors}}.dump();
}

void StatisticsWriter::keep_partial(bool keep) {
  keep_partial_ = keep;
  if (keep) forget_leftover(file_.path());
}

StatisticsWriter::~StatisticsWriter() {
  forget_leftover(file_.path());
  std::error_code ignored;
  if (!finished_ && !keep_partial_) std::filesystem::remove(file_.path(), ignored);
}

Status StatisticsWriter::append(const std::string& name, const at::Tensor& value) {
  const at::Tensor plain = value.cpu().contiguous();
  const auto dtype = from_scalar_type(plain.scalar_type());
  if (!dtype) return {Code::kInternal, name + ": a statistic of a type that safetensors cannot hold"};
  SLIM_TRY(file_.write_at(end_, bytes_of(plain)));
  end_ += static_cast<int64_t>(plain.nbytes());
  written_.push_back({name, *dtype, plain.sizes().vec()});
  return {};
}

Status StatisticsWriter::put(const BlockPlan& block, StatisticSet& statistics) {
  return statistics.for_each([&](const Port& port, const std::string& id, Statistic& statistic) -> Status {
    for (const auto& [key, tensor] : statistic.state())
      SLIM_TRY(append(prefix_of(block, port, id) + key, tensor));
    return {};
  });
}

Status StatisticsWriter::finish(const Fingerprint& fingerprint) {
  if (::ftruncate(file_.fd(), end_) != 0)
    return system_error(file_.path(), "shorten", errno);  // what a killed run had begun
  const std::string text = fingerprint_json(fingerprint);
  at::Tensor bytes = at::empty({static_cast<int64_t>(text.size())}, at::kByte);
  std::memcpy(bytes.data_ptr(), text.data(), text.size());
  SLIM_TRY(append(kFingerprint, bytes));
  SLIM_ASSIGN(const std::string header, padded_header(written_, header_bytes_, path_));
  SLIM_TRY(file_.write_at(0, std::as_bytes(std::span(header))));
  SLIM_TRY(file_.sync());
  if (std::rename(file_.path().c_str(), path_.c_str()) != 0)
    return system_error(file_.path(), "rename to " + path_, errno);
  finished_ = true;
  return sync_folder(folder_of(path_));
}

Result<std::unique_ptr<StatisticsFile>> StatisticsFile::open(const std::string& path) {
  SLIM_ASSIGN(File file, File::open_read(path));
  SLIM_ASSIGN(const auto stored, read_safetensors_header(file));
  std::unique_ptr<StatisticsFile> opened(new StatisticsFile(path, std::move(file)));
  for (const StoredTensor& tensor : stored) opened->tensors_.emplace(tensor.spec.name, tensor);
  const auto found = opened->tensors_.find(kFingerprint);
  const bool is_text = found != opened->tensors_.end() && found->second.spec.dtype == Dtype::kU8;
  if (!is_text)
    return Status(
        Code::kInvalidArgument,
        path + ": holds no fingerprint, so no statistics; give a file that --save-statistics wrote");
  SLIM_ASSIGN(const at::Tensor bytes, opened->read(found->second));
  const std::string text(static_cast<const char*>(bytes.const_data_ptr()), bytes.nbytes());
  auto fingerprint = parse_fingerprint(text);
  if (!fingerprint.ok()) return fingerprint.status().in(path);
  opened->fingerprint_ = *std::move(fingerprint);
  return opened;
}

Result<at::Tensor> StatisticsFile::read(const StoredTensor& stored) const {
  const auto type = to_scalar_type(stored.spec.dtype);
  if (!type)
    return Status(Code::kCorrupt, path_ + ": " + stored.spec.name + " has a type that is not computed with");
  at::Tensor tensor = at::empty(stored.spec.shape, *type);
  SLIM_TRY(file_.read_at(stored.begin, {static_cast<std::byte*>(tensor.data_ptr()), tensor.nbytes()}));
  if (const char* damage = damage_of(tensor))
    return Status(Code::kNumeric,
                  path_ + ": " + stored.spec.name + " holds " + damage + "; collect the statistics again");
  return tensor;
}

Status StatisticsFile::restore(const BlockPlan& block, StatisticSet& statistics, at::Device device) const {
  if (statistics.keeps_inputs()) {
    return {Code::kInvalidArgument,
            block.name + ": the algorithm replays a part of the model, whose inputs " + path_ +
                " cannot hold; leave out --statistics, or choose an objective without replay"};
  }
  return statistics.for_each([&](const Port& port, const std::string& id, Statistic& statistic) -> Status {
    const std::string prefix = prefix_of(block, port, id);
    TensorMap state;
    for (auto it = tensors_.lower_bound(prefix); it != tensors_.end() && it->first.starts_with(prefix);
         ++it) {
      SLIM_ASSIGN(state[it->first.substr(prefix.size())], read(it->second));
    }
    if (state.empty()) {
      return {Code::kInvalidArgument, path_ + ": holds no " + id + " of " + block.name + ", " + port.name +
                                          "; collect it with this algorithm and scheme (--save-statistics)"};
    }
    return statistic.restore(moved(std::move(state), device))
        .in(path_ + ": " + prefix.substr(0, prefix.size() - 1));
  });
}

}  // namespace slim
