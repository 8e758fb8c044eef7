#include "checkpoint/writer.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <future>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>

#include "checkpoint/cast.h"
#include "checkpoint/checksums.h"
#include "checkpoint/file.h"
#include "checkpoint/leftovers.h"
#include "checkpoint/safetensors.h"
#include "util/finite.h"
#include "util/hash.h"

namespace slim {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kCopyChunk = 1 << 20;  // of bytes that are copied or hashed: they stay in the cache
constexpr int64_t kReserved = 16 << 20;  // at a time: writes to the same file wait for it
constexpr int64_t kWriteback = 1 << 20;  // the least for which writing to the disk starts at once

Status invalid(std::string message) { return Status(Code::kInvalidArgument, std::move(message)); }

bool contains(const fs::path& outer, const fs::path& inner) {
  return std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end()).first == outer.end();
}

Status check_inputs(const fs::path& target, const std::vector<std::string>& inputs) {
  std::error_code error;
  const fs::path output = fs::weakly_canonical(target, error);
  if (error) return invalid(target.string() + ": cannot be an output folder: " + error.message());
  for (const auto& input : inputs) {
    const fs::path other = fs::weakly_canonical(input, error);
    if (contains(output, other) || contains(other, output)) {
      return invalid(target.string() + ": the output may not be, contain or lie inside the input " + input +
                     "; choose another output folder");
    }
  }
  return {};
}

/// True for a file that checkpoints have, and people do not write.
bool is_usual(const fs::path& name) {
  static const std::set<std::string> kNames = {"merges.txt",  "vocab.txt", "README.md",     "LICENSE",
                                               "LICENSE.txt", "NOTICE",    ".gitattributes"};
  static const std::set<std::string> kExtensions = {".safetensors", ".json", ".jinja", ".model", ".tiktoken"};
  return kNames.contains(name.string()) || kExtensions.contains(name.extension().string());
}

/// The first entry of a folder that slim did not write: what its list of checksums does not name, or without a list what no checkpoint
/// has. Overwriting deletes the folder: a mistyped --output shall not cost a project.
Result<std::string> foreign_entry(const fs::path& folder) {
  SLIM_ASSIGN(const auto written, read_checksums(folder.string()));
  std::error_code error;
  const bool in_parts =
      fs::exists(folder / kPartsFile, error);  // for tensor parallelism: a folder for each device
  for (auto entry = fs::recursive_directory_iterator(folder, error);
       !error && entry != fs::recursive_directory_iterator(); entry.increment(error)) {
    const fs::path name = entry->path().lexically_relative(folder);
    if (*name.begin() == kRecordFolder) continue;
    const bool link = entry->is_symlink(error), inside = name.has_parent_path();
    if (!link && entry->is_directory(error) && (written || in_parts)) continue;  // its files are looked at
    const bool file = !link && entry->is_regular_file(error);
    const bool ours = written ? written->files.contains(name.string()) || name == kChecksumFile
                              : (!inside || in_parts) && is_usual(name.filename());
    if (!file || !ours) return name.string();
  }
  if (error) return Status(Code::kIo, folder.string() + ": cannot be read: " + error.message());
  return std::string();
}

bool holds_checkpoint(const fs::path& folder) {
  std::error_code error;
  if (fs::is_empty(folder, error) || fs::exists(folder / "config.json", error)) return true;
  fs::directory_iterator entries(folder, error);
  return !error && std::any_of(begin(entries), end(entries),
                               [](const auto& entry) { return entry.path().extension() == ".safetensors"; });
}

/// What is read by the run is not deleted by it.
Status check_kept(const fs::path& target, const std::vector<std::string>& kept) {
  std::error_code error;
  const fs::path output = fs::weakly_canonical(target, error);
  for (const std::string& path : kept) {
    if (!path.empty() && contains(output, fs::weakly_canonical(path, error)))
      return invalid(target.string() + ": overwriting it would delete " + path +
                     ", which this run reads; choose another output folder");
  }
  return {};
}

/// A volume of a container, among others: the finished folder cannot take its name.
bool is_mount_point(const fs::path& folder) {
  struct statx facts {};
  return ::statx(AT_FDCWD, folder.c_str(), AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &facts) == 0 &&
         (facts.stx_attributes & STATX_ATTR_MOUNT_ROOT) != 0;
}

Status check_target(const fs::path& target, bool overwrite) {
  std::error_code error;
  const fs::file_status status = fs::symlink_status(target, error);
  if (status.type() == fs::file_type::not_found) return {};
  if (is_mount_point(target))
    return invalid(
        target.string() +
        ": is a mount point, and an output takes its name in one step when it is whole; name a folder "
        "inside it: --output " +
        (target / "NAME").string());
  if (fs::is_directory(status) && fs::is_empty(target, error)) return {};
  if (!overwrite)
    return invalid(target.string() +
                   ": exists already; give --overwrite to replace it, or choose another output folder");
  if (!fs::is_directory(target, error) || !holds_checkpoint(target)) {
    return invalid(target.string() +
                   ": is no checkpoint folder, so it is not overwritten; choose another output folder");
  }
  SLIM_ASSIGN(const std::string foreign, foreign_entry(target));
  if (foreign.empty()) return {};
  return invalid(target.string() + ": holds " + foreign +
                 ", which slim did not write, so it is not overwritten; move that away, or choose another "
                 "output folder");
}

struct ShardPlan {
  std::vector<TensorSpec> tensors;
  int64_t bytes = 0;
};

Result<std::vector<ShardPlan>> plan_shards(const std::vector<TensorSpec>& tensors, int64_t max_bytes) {
  if (tensors.empty()) return std::vector<ShardPlan>();
  std::vector<ShardPlan> shards(1);
  std::set<std::string_view> names;
  for (const auto& spec : tensors) {
    const auto bytes = byte_size(spec);
    if (!bytes)
      return Status(Code::kInternal,
                    "tensor '" + spec.name + "' " + shape_string(spec.shape) + " has no size");
    if (spec.name.empty() || !names.insert(spec.name).second)
      return Status(Code::kInternal, "tensor '" + spec.name + "' is announced twice");
    if (!shards.back().tensors.empty() && *bytes > max_bytes - shards.back().bytes) shards.emplace_back();
    shards.back().tensors.push_back(spec);
    shards.back().bytes += *bytes;
  }
  for (auto& shard : shards) {
    std::ranges::stable_sort(shard.tensors, std::greater{},
                             [](const TensorSpec& spec) { return dtype_bits(spec.dtype); });
  }
  return shards;
}

std::string shard_name(const std::string& stem, size_t index, size_t count) {
  if (count == 1) return stem + ".safetensors";
  char part[64];
  std::snprintf(part, sizeof part, "-%05zu-of-%05zu.safetensors", index + 1, count);
  return stem + part;
}

Status disk_full(const fs::path& folder, int64_t needed, int64_t available) {
  return Status(Code::kIo, folder.string() + ": the disk is too small: " + bytes_string(needed) +
                               " are needed, " + bytes_string(available) +
                               " are available; free space or choose another output folder");
}

Result<int64_t> available_bytes(const fs::path& folder) {
  struct statvfs info {};
  if (::statvfs(folder.c_str(), &info) != 0)
    return system_error(folder.string(), "ask for free space", errno);
  return static_cast<int64_t>(std::min<uint64_t>(uint64_t{info.f_bavail} * info.f_frsize, INT64_MAX));
}

/// Reserves space on the disk for the files of one output.
class Reservation {
 public:
  /// `needed` and `available` are those of the whole output, for the message.
  Reservation(fs::path folder, int64_t needed, int64_t available)
      : folder_(std::move(folder)), needed_(needed), available_(available) {}
  ~Reservation() {
    stop_ = true;
    if (later_.valid()) later_.wait();
  }
  Reservation(const Reservation&) = delete;
  Reservation& operator=(const Reservation&) = delete;

  /// Gives the file its size, and the space for it: at once, or where space is memory, which takes time to find, with start_later().
  Status add(const File& file, int64_t bytes) {
    if (::ftruncate(file.fd(), bytes) != 0)
      return system_error(file.path(), "reserve " + bytes_string(bytes), errno);
    struct statfs info {};
    if (::fstatfs(file.fd(), &info) != 0 || info.f_type != TMPFS_MAGIC) return reserve(file, 0, bytes);
    files_.emplace_back(&file, bytes);
    return {};
  }
  /// The files must outlive the reservation.
  void start_later() {
    if (!files_.empty()) later_ = std::async(std::launch::async, [this] { return reserve_files(); });
  }
  /// Waits for it.
  Status finish() { return later_.valid() ? later_.get() : Status{}; }

 private:
  Status reserve_files() const {
    for (const auto& [file, bytes] : files_) {
      for (int64_t done = 0; done < bytes && !stop_; done += kReserved)
        SLIM_TRY(reserve(*file, done, std::min(kReserved, bytes - done)));
    }
    return {};
  }

  Status reserve(const File& file, int64_t offset, int64_t bytes) const {
    int error = 0;
    do {
      error = ::fallocate(file.fd(), 0, offset, bytes) == 0 ? 0 : errno;
    } while (error == EINTR);
    if (error == ENOSPC || error == EDQUOT) return disk_full(folder_, needed_, available_);
    // Some network file systems cannot; the free space was compared before.
    if (error == 0 || error == EOPNOTSUPP || error == ENOSYS) return {};
    return system_error(file.path(), "reserve " + bytes_string(bytes), error);
  }

  fs::path folder_;
  int64_t needed_, available_;
  std::vector<std::pair<const File*, int64_t>> files_;
  std::atomic<bool> stop_{false};
  std::future<Status> later_;
};

// Starts writing to the disk now, so that little is left for finish(). Only a hint: errors come back from
// fsync.
void start_writeback(const File& file, int64_t offset, int64_t bytes) {
  if (bytes >= kWriteback) ::sync_file_range(file.fd(), offset, bytes, SYNC_FILE_RANGE_WRITE);
}

Status lock_folder(const File& folder) {
  if (folder.lock()) return {};
  return invalid(folder.path() +
                 ": another process is writing this output; wait for it or choose another output folder");
}

Status rename_folder(const fs::path& from, const fs::path& to) {
  if (std::rename(from.c_str(), to.c_str()) != 0)
    return system_error(from.string(), "rename to " + to.string(), errno);
  return {};
}

/// The absolute path of an output, without a slash at its end.
fs::path target_of(const std::string& folder) {
  std::error_code error;
  const fs::path target = fs::absolute(folder, error).lexically_normal();
  return target.has_filename() ? target : target.parent_path();
}

}  // namespace

struct CheckpointWriter::State {
  enum class Stage : uint8_t { kPending, kWriting, kDone };
  struct Slot {
    TensorSpec spec;
    const File* file = nullptr;
    int64_t offset = 0, bytes = 0;
    std::string shard;
    Stage stage = Stage::kPending;
    uint64_t checksum = 0;
  };

  WriterOptions options;
  fs::path target, partial;
  std::string partial_name;
  std::vector<fs::path> made_parents;  // outermost first
  std::optional<File> lock;
  std::vector<std::unique_ptr<File>> shards;
  std::optional<Reservation> reservation;  // of the shards
  std::map<std::string, Slot> slots;
  std::set<std::string> own_files;
  std::set<fs::path> folders;  // below partial
  int64_t total_bytes = 0;
  bool owns_partial = false, keep_partial = false, finished = false;
  std::vector<std::string> unsynced;               // finished since the last sync_finished()
  std::map<std::string, uint64_t> file_checksums;  // of side files and the shards' headers
  std::mutex mutex;                                // guards the stages, checksums and `unsynced`

  ~State() {
    forget_leftover(partial_name);
    reservation.reset();
    if (finished) return;
    shards.clear();
    std::error_code ignored;
    if (keep_partial) return;
    if (owns_partial) fs::remove_all(partial, ignored);
    for (auto parent = made_parents.rbegin(); parent != made_parents.rend(); ++parent)
      ::rmdir(parent->c_str());
  }

  Status make_parents() {
    std::error_code error;
    for (fs::path parent = target.parent_path(); !fs::exists(parent, error) && parent.has_relative_path();
         parent = parent.parent_path()) {
      made_parents.insert(made_parents.begin(), parent);
    }
    fs::create_directories(target.parent_path(), error);
    if (error)
      return Status(Code::kIo,
                    target.parent_path().string() + ": cannot make the folder: " + error.message());
    return {};
  }

  // Kept blocks are worth nothing in a folder that a power failure takes away.
  Status sync_folders() {
    SLIM_TRY(sync_folder(partial_name));
    SLIM_TRY(sync_folder(target.parent_path().string()));
    for (const fs::path& parent : made_parents) SLIM_TRY(sync_folder(parent.parent_path().string()));
    return {};
  }

  // A FOLDER.partial that nobody has locked was left by a crash.
  Status take_partial() {
    std::error_code error;
    if (options.resume) return adopt_partial();
    if (fs::symlink_status(partial, error).type() != fs::file_type::not_found) {
      SLIM_TRY(check_partial());
      SLIM_ASSIGN(const File stale, File::open_folder(partial_name));
      SLIM_TRY(lock_folder(stale));
      fs::remove_all(partial, error);
      if (error)
        return Status(Code::kIo,
                      partial_name + ": cannot delete what an earlier run left: " + error.message());
    }
    if (!fs::create_directory(partial, error))
      return Status(Code::kIo, partial_name + ": cannot make the folder: " + error.message());
    owns_partial = true;
    SLIM_ASSIGN(lock, File::open_folder(partial_name));
    Status locked = lock_folder(*lock);
    owns_partial = locked.ok();
    if (owns_partial) add_leftover(partial_name);
    SLIM_TRY(locked);
    if (!fs::create_directory(partial / kRecordFolder, error))
      return Status(Code::kIo, partial_name + ": cannot make a folder in it: " + error.message());
    return {};
  }

  /// Only what slim has begun is deleted.
  Status check_partial() const {
    std::error_code error;
    const bool ours = fs::is_directory(fs::symlink_status(partial / kRecordFolder, error));
    if (ours || (fs::is_directory(fs::symlink_status(partial, error)) && fs::is_empty(partial, error)))
      return {};
    return invalid(
        partial_name +
        ": is in the way, and no unfinished output of slim; move it away, or choose another output "
        "folder");
  }

  Status adopt_partial() {
    SLIM_ASSIGN(lock, File::open_folder(partial_name));
    SLIM_TRY(lock_folder(*lock));
    owns_partial = keep_partial = true;
    return {};
  }

  // The shard of an earlier process, which must have been planned like this one's.
  Result<File> adopt_shard(const std::string& name, const std::string& header, int64_t bytes) {
    SLIM_ASSIGN(File file, File::open_write((partial / name).string()));
    SLIM_ASSIGN(const int64_t size, file.size());
    std::string found(header.size(), '\0');
    if (size == bytes) SLIM_TRY(file.read_at(0, std::as_writable_bytes(std::span(found))));
    if (found == header) return file;
    return Status(Code::kCorrupt,
                  file.path() + ": is not what the interrupted run began; start again without --resume");
  }

  Status make_shards(const std::vector<ShardPlan>& plans) {
    std::vector<std::string> headers;
    int64_t needed = 0;
    for (const auto& plan : plans) {
      headers.push_back(safetensors_header(plan.tensors));
      total_bytes += plan.bytes;
      needed += static_cast<int64_t>(headers.back().size()) + plan.bytes;
    }
    SLIM_ASSIGN(const int64_t available, available_bytes(partial));
    if (!options.resume && needed > available) return disk_full(target, needed, available);
    reservation.emplace(target, needed, available);
    for (size_t i = 0; i < plans.size(); ++i) {
      const std::string name = shard_name(options.stem, i, plans.size());
      int64_t offset = static_cast<int64_t>(headers[i].size());
      SLIM_ASSIGN(File file, options.resume ? adopt_shard(name, headers[i], offset + plans[i].bytes)
                                            : File::create((partial / name).string()));
      shards.push_back(std::make_unique<File>(std::move(file)));
      file_checksums[name] = hash_text(headers[i]);
      own_files.insert(name);
      if (!options.resume) {
        SLIM_TRY(reservation->add(*shards[i], offset + plans[i].bytes));
        SLIM_TRY(shards[i]->write_at(0, std::as_bytes(std::span(headers[i]))));
      }
      for (const auto& spec : plans[i].tensors) {
        const int64_t bytes = *byte_size(spec);
        slots[spec.name] = Slot{spec, shards[i].get(), offset, bytes, name, Stage::kPending, 0};
        offset += bytes;
      }
    }
    reservation->start_later();
    return {};
  }

  // Runs `write` for the slot of a tensor that is exactly what was announced and has not come before.
  Status fill(const std::string& name, Dtype dtype, const std::vector<int64_t>& shape,
              const std::function<Status(Slot&)>& write) {
    const auto found = slots.find(name);
    if (found == slots.end())
      return Status(Code::kInternal, target.string() + ": tensor '" + name + "' was not announced");
    Slot& slot = found->second;
    if (dtype != slot.spec.dtype || shape != slot.spec.shape) {
      return Status(Code::kInternal, target.string() + ": tensor '" + name + "' is " +
                                         std::string(dtype_name(dtype)) + " " + shape_string(shape) +
                                         ", announced was " + std::string(dtype_name(slot.spec.dtype)) + " " +
                                         shape_string(slot.spec.shape));
    }
    {
      const std::lock_guard guard(mutex);
      if (finished || slot.stage != Stage::kPending)
        return Status(Code::kInternal, target.string() + ": tensor '" + name + "' comes twice");
      slot.stage = Stage::kWriting;
    }
    Status status = write(slot);
    const std::lock_guard guard(mutex);
    slot.stage = status.ok() ? Stage::kDone : Stage::kPending;
    if (status.ok()) unsynced.push_back(name);
    return status;
  }

  Status check_checksum(Slot& slot, uint64_t expected) {
    SLIM_ASSIGN(const uint64_t checksum, hash_file(*slot.file, slot.offset, slot.bytes));
    if (checksum != expected) {
      return Status(Code::kCorrupt,
                    slot.file->path() + ": the bytes of '" + slot.spec.name +
                        "' are not those that the interrupted run wrote; start again without --resume");
    }
    slot.checksum = checksum;
    slot.stage = Stage::kDone;
    return {};
  }

  Status check_complete() {
    const std::lock_guard guard(mutex);
    std::string first;
    int64_t missing = 0;
    for (const auto& [name, slot] : slots) {
      if (slot.stage == Stage::kDone) continue;
      if (missing++ == 0) first = name;
    }
    if (missing == 0) return {};
    return Status(Code::kInternal, target.string() + ": " + std::to_string(missing) +
                                       " announced tensors were not written, the first is '" + first + "'");
  }

  std::string index_name() const { return options.stem + ".safetensors.index.json"; }
  std::string index_text() const {
    nlohmann::json map = nlohmann::json::object();
    for (const auto& [name, slot] : slots) map[name] = slot.shard;
    return nlohmann::json{{"metadata", {{"total_size", total_bytes}}}, {"weight_map", map}}.dump(2) + "\n";
  }

  Checksums checksums() const {
    Checksums all{file_checksums, {}};
    for (const auto& [name, slot] : slots) all.tensors[name] = slot.checksum;
    return all;
  }

  // The file `name` of the partial folder, its subfolder made.
  Result<File> side_file(const std::string& name) {
    const fs::path path(name);
    if (name.empty() || path.is_absolute() || path.lexically_normal() != path || *path.begin() == ".." ||
        !path.has_filename()) {
      return invalid("'" + name + "' is no name of a file inside the output folder");
    }
    if (own_files.contains(name))
      return invalid("'" + name + "' is a weight file of the output and cannot be replaced");
    SLIM_TRY(reservation->finish());  // it shall not take the tensors' space
    for (fs::path folder = path.parent_path(); !folder.empty(); folder = folder.parent_path())
      folders.insert(partial / folder);
    std::error_code error;
    fs::create_directories((partial / path).parent_path(), error);
    if (error)
      return Status(Code::kIo,
                    (partial / path).parent_path().string() + ": cannot make the folder: " + error.message());
    return File::create((partial / path).string());
  }

  Status exchange(const fs::path& aside) const;

  /// The output has its name. A run's record in the marker stays until the run ends.
  void end() {
    finished = true;
    ::rmdir((target / kRecordFolder).c_str());
  }

  Status put_in_place() {
    std::error_code error;
    if (!options.overwrite || !fs::exists(fs::symlink_status(target, error))) {
      SLIM_TRY(rename_folder(partial, target));
      end();
      return sync_folder(target.parent_path().string());
    }
    fs::path aside = target.string() + ".old";
    for (int i = 1; fs::exists(fs::symlink_status(aside, error)); ++i)
      aside = target.string() + ".old" + std::to_string(i);
    SLIM_TRY(exchange(aside));
    end();
    SLIM_TRY(sync_folder(target.parent_path().string()));
    fs::remove_all(aside, error);
    if (error)
      return Status(Code::kIo, aside.string() +
                                   ": the new output is complete, but the old one cannot be deleted: " +
                                   error.message());
    return {};
  }
};

/// Gives the new output the name of the old one, which is then `aside`: in one step where the file system can, so that the name always
/// has one of both.
Status CheckpointWriter::State::exchange(const fs::path& aside) const {
  if (::renameat2(AT_FDCWD, partial.c_str(), AT_FDCWD, target.c_str(), RENAME_EXCHANGE) == 0)
    return rename_folder(partial, aside);
  if (errno != EINVAL && errno != ENOSYS && errno != ENOTSUP)
    return system_error(partial_name, "exchange with " + target.string(), errno);
  SLIM_TRY(rename_folder(target, aside));
  Status status = rename_folder(partial, target);
  if (status.ok()) return status;
  const Status back = rename_folder(aside, target);
  return back.ok() ? status : std::move(status).in("the old output is now " + aside.string());
}

CheckpointWriter::CheckpointWriter() : state_(std::make_unique<State>()) {}
CheckpointWriter::~CheckpointWriter() = default;

Result<std::unique_ptr<CheckpointWriter>> CheckpointWriter::create(const WriterOptions& options,
                                                                   const std::vector<TensorSpec>& tensors) {
  if (options.folder.empty()) return invalid("the output folder has no name; give --output DIR");
  if (options.max_shard_size <= 0)
    return invalid("max_shard_size is " + std::to_string(options.max_shard_size) + ", expected at least 1");
  std::unique_ptr<CheckpointWriter> writer(new CheckpointWriter);
  State& state = *writer->state_;
  state.options = options;
  state.target = target_of(options.folder);
  state.partial = partial_of(options.folder);
  state.partial_name = state.partial.string();
  SLIM_ASSIGN(const auto plans, plan_shards(tensors, options.max_shard_size));
  SLIM_TRY(check_inputs(state.target, options.inputs));
  SLIM_TRY(check_inputs(state.partial, options.inputs));
  SLIM_TRY(check_kept(state.target, options.kept));
  SLIM_TRY(check_kept(state.partial, options.kept));
  SLIM_TRY(check_target(state.target, options.overwrite));
  SLIM_TRY(state.make_parents());
  SLIM_TRY(state.take_partial());
  SLIM_TRY(state.make_shards(plans));
  if (!options.resume) SLIM_TRY(state.sync_folders());
  if (plans.size() > 1) state.own_files.insert(state.index_name());
  return writer;
}

Status CheckpointWriter::put(const std::string& name, const at::Tensor& value) {
  const auto dtype = value.defined() ? from_scalar_type(value.scalar_type()) : std::nullopt;
  if (!dtype)
    return Status(Code::kInternal,
                  "tensor '" + name + "' has no value, or a type that safetensors cannot hold");
  return state_->fill(name, *dtype, value.sizes().vec(), [&](State::Slot& slot) -> Status {
    slot.checksum = kHashStart;
    try {
      const at::Tensor plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous();
      if (slot.bytes == 0) return {};
      const std::span bytes(static_cast<const std::byte*>(plain.const_data_ptr()),
                            static_cast<size_t>(slot.bytes));
      for (int64_t done = 0; done < slot.bytes; done += kCopyChunk) {
        const std::span chunk = bytes.subspan(static_cast<size_t>(done),
                                              static_cast<size_t>(std::min(kCopyChunk, slot.bytes - done)));
        slot.checksum = hash_bytes(chunk, slot.checksum);
        SLIM_TRY(slot.file->write_at(slot.offset + done, chunk));
      }
    } catch (const std::exception& error) {
      return Status(Code::kOutOfMemory, "tensor '" + name + "': cannot copy it to the CPU: " + error.what());
    }
    start_writeback(*slot.file, slot.offset, slot.bytes);
    return {};
  });
}

Status CheckpointWriter::copy(const std::string& name, const Checkpoint& from, const std::string& from_name) {
  const auto spec = from.tensors().find(from_name);
  if (spec == from.tensors().end())
    return Status(Code::kNotFound, from.folder() + ": has no tensor '" + from_name + "'");
  return copy(name, from, from_name, spec->second.dtype);
}

namespace {

/// Bytes of numbers of one type as those of another.
Result<at::Tensor> cast_bytes(const std::string& name, std::span<std::byte> bytes, Dtype from, Dtype to) {
  const auto count = static_cast<int64_t>(bytes.size()) * 8 / dtype_bits(from);
  const at::Tensor numbers = at::from_blob(bytes.data(), {count}, at::TensorOptions(*to_scalar_type(from)));
  return cast_checked(name, numbers, to);
}

}  // namespace

Status CheckpointWriter::copy(const std::string& name, const Checkpoint& from, const std::string& from_name,
                              Dtype dtype) {
  const auto found = from.tensors().find(from_name);
  if (found == from.tensors().end())
    return Status(Code::kNotFound, from.folder() + ": has no tensor '" + from_name + "'");
  const TensorSpec& spec = found->second;
  const int64_t stored = byte_size(spec).value_or(0);
  return state_->fill(name, dtype, spec.shape, [&](State::Slot& slot) -> Status {
    slot.checksum = kHashStart;
    std::vector<std::byte> buffer(static_cast<size_t>(std::min(kCopyChunk, stored)));
    for (int64_t done = 0, written = 0; done < stored;) {
      const std::span chunk =
          std::span(buffer).first(static_cast<size_t>(std::min(kCopyChunk, stored - done)));
      SLIM_TRY(from.read_bytes(from_name, done, chunk));
      if (!all_finite(spec.dtype, chunk))
        return Status(Code::kNumeric, from.folder() + ": " + from_name +
                                          " holds NaN or Inf; the checkpoint is damaged: download it again");
      std::span<const std::byte> out = chunk;
      at::Tensor cast;
      if (dtype != spec.dtype) {
        SLIM_ASSIGN(cast, cast_bytes(from_name, chunk, spec.dtype, dtype));
        out = {static_cast<const std::byte*>(cast.const_data_ptr()), cast.nbytes()};
      }
      SLIM_TRY(slot.file->write_at(slot.offset + written, out));
      slot.checksum = hash_bytes(out, slot.checksum);
      done += static_cast<int64_t>(chunk.size());
      written += static_cast<int64_t>(out.size());
    }
    start_writeback(*slot.file, slot.offset, slot.bytes);
    return {};
  });
}

Status CheckpointWriter::write_file(const std::string& name, std::string_view contents) {
  SLIM_ASSIGN(const File file, state_->side_file(name));
  SLIM_TRY(file.write_at(0, std::as_bytes(std::span(contents))));
  state_->file_checksums[name] = hash_text(contents);
  return file.sync();
}

Status CheckpointWriter::copy_file(const std::string& name, const std::string& source) {
  SLIM_ASSIGN(const File from, File::open_read(source));
  SLIM_ASSIGN(const int64_t size, from.size());
  SLIM_ASSIGN(const File file, state_->side_file(name));
  std::vector<std::byte> buffer(static_cast<size_t>(std::min(kCopyChunk, size)));
  uint64_t checksum = kHashStart;
  for (int64_t done = 0; done < size; done += kCopyChunk) {
    const std::span chunk = std::span(buffer).first(static_cast<size_t>(std::min(kCopyChunk, size - done)));
    SLIM_TRY(from.read_at(done, chunk));
    SLIM_TRY(file.write_at(done, chunk));
    checksum = hash_bytes(chunk, checksum);
  }
  state_->file_checksums[name] = checksum;
  return file.sync();
}

Status CheckpointWriter::finish() {
  State& state = *state_;
  if (state.finished) return Status(Code::kInternal, state.target.string() + ": is finished already");
  SLIM_TRY(state.check_complete());
  SLIM_TRY(state.reservation->finish());
  if (state.shards.size() > 1) {
    SLIM_ASSIGN(const File index, File::create((state.partial / state.index_name()).string()));
    const std::string text = state.index_text();
    SLIM_TRY(index.write_at(0, std::as_bytes(std::span(text))));
    SLIM_TRY(index.sync());
    state.file_checksums[state.index_name()] = hash_text(text);
  }
  if (state.options.checksums) SLIM_TRY(write_file(kChecksumFile, checksums_text(state.checksums())));
  for (const auto& shard : state.shards) SLIM_TRY(shard->sync());
  for (const auto& folder : state.folders) SLIM_TRY(sync_folder(folder.string()));
  SLIM_TRY(state.lock->sync());
  return state.put_in_place();
}

Result<std::map<std::string, uint64_t>> CheckpointWriter::sync_finished() {
  State& state = *state_;
  std::map<std::string, uint64_t> checksums;
  std::set<const File*> files;
  {
    const std::lock_guard guard(state.mutex);
    for (const std::string& name : state.unsynced) {
      const State::Slot& slot = state.slots.at(name);
      checksums[name] = slot.checksum;
      files.insert(slot.file);
    }
    state.unsynced.clear();
  }
  for (const File* file : files) SLIM_TRY(file->sync());
  return checksums;
}

Status CheckpointWriter::adopt(const std::map<std::string, uint64_t>& finished) {
  for (const auto& [name, checksum] : finished) {
    const auto found = state_->slots.find(name);
    if (found == state_->slots.end()) {
      return Status(Code::kCorrupt, state_->partial_name + ": the interrupted run wrote '" + name +
                                        "', which this one does not");
    }
    SLIM_TRY(state_->check_checksum(found->second, checksum));
  }
  return {};
}

void CheckpointWriter::keep_partial(bool keep) {
  state_->keep_partial = keep;
  if (keep) forget_leftover(state_->partial_name);
}

Status CheckpointWriter::check_unused(const std::string& partial_folder) {
  const auto folder = File::open_folder(partial_folder);
  return folder.ok() ? lock_folder(*folder) : Status{};
}

bool CheckpointWriter::is_unfinished(const std::string& folder) {
  std::error_code error;
  return fs::exists(partial_of(folder) + "/" + kRecordFolder, error);
}

std::string CheckpointWriter::partial_of(const std::string& folder) {
  return target_of(folder).string() + ".partial";
}

const std::string& CheckpointWriter::partial_folder() const { return state_->partial_name; }
int64_t CheckpointWriter::total_bytes() const { return state_->total_bytes; }

}  // namespace slim
