#include "resume/journal.h"

#include <cstdio>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "checkpoint/checksums.h"
#include "checkpoint/tensor_file.h"
#include "checkpoint/writer.h"
#include "util/hash.h"
#include "util/strict_json.h"

namespace slim {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kLargestJournal = int64_t{4} << 30;
constexpr size_t kHashDigits = 16;

std::string journal_path(const std::string& folder) { return folder + "/journal.jsonl"; }

/// The entry of a line, or empty: a line that a crash has cut off, and everything after it, never happened.
std::string entry_of(const std::string& line) {
  if (line.size() <= kHashDigits + 1) return "";
  const std::string json = line.substr(kHashDigits + 1);
  return line.substr(0, kHashDigits) == hash_digits(hash_text(json)) ? json : "";
}

std::vector<std::string> entries_of(const std::string& text, int64_t& end) {
  std::vector<std::string> entries;
  size_t begin = 0;
  for (size_t stop = text.find('\n'); stop != std::string::npos; stop = text.find('\n', begin)) {
    const std::string json = entry_of(text.substr(begin, stop - begin));
    if (json.empty()) break;
    entries.push_back(json);
    begin = stop + 1;
  }
  end = static_cast<int64_t>(begin);
  return entries;
}

nlohmann::json recorded(const Calibration& calibration) {
  nlohmann::json samples = nlohmann::json::array();
  for (const SampleFacts& sample : calibration.samples) {
    samples.push_back({sample.origin, sample.text_tokens, sample.image_tokens, sample.downscaled});
  }
  return {{"samples", samples},
          {"left_out", calibration.left_out},
          {"skipped", calibration.skipped},
          {"remarks", calibration.remarks},
          {"text_tokens", calibration.text_tokens},
          {"image_tokens", calibration.image_tokens},
          {"smallest", calibration.smallest},
          {"batches", calibration.batches.size()}};
}

Calibration calibration_from(const nlohmann::json& json) {
  Calibration calibration;
  for (const nlohmann::json& sample : json.at("samples")) {
    calibration.samples.push_back({sample.at(0).get<std::string>(), sample.at(1).get<int64_t>(),
                                   sample.at(2).get<int64_t>(), sample.at(3).get<bool>()});
  }
  json.at("left_out").get_to(calibration.left_out);
  json.at("skipped").get_to(calibration.skipped);
  json.at("remarks").get_to(calibration.remarks);
  json.at("text_tokens").get_to(calibration.text_tokens);
  json.at("image_tokens").get_to(calibration.image_tokens);
  json.at("smallest").get_to(calibration.smallest);
  calibration.batches.resize(json.at("batches").get<size_t>());
  return calibration;
}

Status write_text(const std::string& path, const std::string& text) {
  SLIM_ASSIGN(const File file, File::create(path));
  SLIM_TRY(file.write_at(0, std::as_bytes(std::span(text))));
  return file.sync();
}

Result<std::string> checksum_of(const std::string& path) {
  SLIM_ASSIGN(const uint64_t hash, hash_file(path));
  return hash_digits(hash);
}

}  // namespace

std::string Journal::folder_in(const std::string& output_folder) {
  return output_folder + "/" + kRecordFolder;
}
std::string Journal::batches_path(int64_t blocks) const {
  return folder_ + "/batches-" + std::to_string(blocks) + ".safetensors";
}
std::string Journal::state_path(int64_t blocks) const {
  return folder_ + "/state-" + std::to_string(blocks) + ".json";
}

int64_t Journal::blocks_in(const std::string& output_folder) {
  std::error_code error;
  if (!fs::exists(journal_path(folder_in(output_folder)), error)) return 0;
  const auto journal = read(output_folder);
  return journal.ok() ? (*journal)->blocks() : 0;
}

Result<std::unique_ptr<Journal>> Journal::begin(const std::string& output_folder,
                                                const Fingerprint& fingerprint) {
  std::unique_ptr<Journal> journal(new Journal(output_folder));
  std::error_code error;
  fs::create_directory(journal->folder_, error);
  if (error) return Status(Code::kIo, journal->folder_ + ": cannot make the folder: " + error.message());
  SLIM_ASSIGN(File file, File::create(journal_path(journal->folder_)));
  journal->file_ = std::make_unique<File>(std::move(file));
  SLIM_TRY(journal->append(json_text(nlohmann::json{{"fingerprint", fingerprint}})));
  journal->fingerprint_ = fingerprint;
  SLIM_TRY(sync_folder(journal->folder_));
  SLIM_TRY(sync_folder(output_folder));
  return journal;
}

Result<std::unique_ptr<Journal>> Journal::open(const std::string& output_folder) {
  // Its owner would change the record while it is read.
  SLIM_TRY(CheckpointWriter::check_unused(output_folder));
  return read(output_folder);
}

Result<std::unique_ptr<Journal>> Journal::read(const std::string& output_folder) {
  std::unique_ptr<Journal> journal(new Journal(output_folder));
  const std::string path = journal_path(journal->folder_);
  SLIM_ASSIGN(const std::string text, read_text(path, kLargestJournal));
  for (const std::string& entry : entries_of(text, journal->end_)) {
    Status status = journal->read_entry(entry);
    if (!status.ok()) return std::move(status).in(path);
  }
  if (journal->fingerprint_.empty())
    return Status(Code::kCorrupt, path + ": its beginning is damaged; start again without --resume");
  SLIM_ASSIGN(File file, File::open_write(path));
  journal->file_ = std::make_unique<File>(std::move(file));
  return journal;
}

Status Journal::read_entry(const std::string& text) try {
  const nlohmann::json json = nlohmann::json::parse(text);
  if (json.contains("fingerprint")) fingerprint_ = json.at("fingerprint").get<Fingerprint>();
  if (json.contains("step")) steps_.insert(json.at("step").get<std::string>());
  if (!json.contains("blocks")) return {};
  blocks_ = json.at("blocks").get<int64_t>();
  inputs_.push_back(json.at("input").get<uint64_t>());
  checksums_ = json.at("checksums").get<std::map<std::string, std::string>>();
  const auto written = json.at("tensors").get<std::vector<std::map<std::string, uint64_t>>>();
  tensors_.resize(written.size());
  for (size_t i = 0; i < written.size(); ++i) tensors_[i].insert(written[i].begin(), written[i].end());
  return {};
} catch (const nlohmann::json::exception& error) {
  return {Code::kCorrupt,
          std::string("an entry is damaged: ") + error.what() + "; start again without --resume"};
}

Status Journal::append(const std::string& json) {
  const std::string line = hash_digits(hash_text(json)) + " " + json + "\n";
  SLIM_TRY(file_->write_at(end_, std::as_bytes(std::span(line))));
  SLIM_TRY(file_->sync());
  end_ += static_cast<int64_t>(line.size());
  return {};
}

Status Journal::record(const std::vector<std::map<std::string, uint64_t>>& tensors, uint64_t input,
                       const RunState& state) {
  const int64_t blocks = blocks_ + 1;
  const bool has_batches = !state.calibration.batches.empty();
  std::vector<std::pair<std::string, at::Tensor>> batches;
  for (size_t i = 0; i < state.calibration.batches.size(); ++i) {
    for (const auto& [key, tensor] : state.calibration.batches[i])
      batches.emplace_back(std::to_string(i) + "/" + key, tensor);
  }
  nlohmann::json checksums = nlohmann::json::object();
  if (has_batches) {
    SLIM_TRY(write_tensors(batches_path(blocks), batches));
    SLIM_ASSIGN(checksums["batches"], checksum_of(batches_path(blocks)));
  }
  const nlohmann::json json = {{"calibration", recorded(state.calibration)},
                               {"reports", state.reports},
                               {"statistics", state.statistics}};
  SLIM_TRY(write_text(state_path(blocks), json_text(json)));
  checksums["state"] = hash_digits(hash_text(json_text(json)));
  SLIM_TRY(sync_folder(folder_));
  SLIM_TRY(append(json_text(
      nlohmann::json{{"blocks", blocks}, {"tensors", tensors}, {"input", input}, {"checksums", checksums}})));
  std::error_code ignored;
  fs::remove(batches_path(blocks_), ignored);
  fs::remove(state_path(blocks_), ignored);
  blocks_ = blocks;
  inputs_.push_back(input);
  return {};
}

/// What another process wrote is read only if it is what it wrote.
Status Journal::check(const std::string& kind, const std::string& path, const std::string& found) const {
  const auto expected = checksums_.find(kind);
  if (expected != checksums_.end() && expected->second == found) return {};
  return {Code::kCorrupt,
          path + ": its bytes are not those that the interrupted run wrote; start again without --resume"};
}

Result<RunState> Journal::state() const try {
  SLIM_ASSIGN(const std::string text, read_text(state_path(blocks_), kLargestJournal));
  SLIM_TRY(check("state", state_path(blocks_), hash_digits(hash_text(text))));
  const nlohmann::json json = nlohmann::json::parse(text);
  RunState state{calibration_from(json.at("calibration")), json.at("reports").get<std::vector<std::string>>(),
                 json.at("statistics").get<std::string>()};
  if (state.calibration.batches.empty()) return state;
  SLIM_ASSIGN(const std::string found, checksum_of(batches_path(blocks_)));
  SLIM_TRY(check("batches", batches_path(blocks_), found));
  SLIM_ASSIGN(const TensorMap batches, read_tensors(batches_path(blocks_)));
  for (const auto& [name, tensor] : batches) {
    const size_t slash = name.find('/');
    state.calibration.batches.at(std::stoul(name.substr(0, slash)))[name.substr(slash + 1)] = tensor;
  }
  return state;
} catch (const std::exception& error) {
  return Status(Code::kCorrupt, state_path(blocks_) + ": " + error.what() + "; start again without --resume");
}

Status Journal::announce(const std::string& step) {
  steps_.insert(step);
  return append(json_text(nlohmann::json{{"step", step}}));
}

}  // namespace slim
