#include "checkpoint/checkpoint.h"

#include <ATen/ATen.h>
#include <fcntl.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <set>

#include "checkpoint/checksums.h"
#include "checkpoint/file.h"
#include "checkpoint/safetensors.h"
#include "util/strict_json.h"
#include "util/text.h"

namespace slim {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr std::string_view kWeights = ".safetensors";
constexpr std::string_view kIndex = ".safetensors.index.json";
constexpr int64_t kMaxConfig = 16'000'000, kMaxIndex = 100'000'000;

Status corrupt(std::string message) { return Status(Code::kCorrupt, std::move(message)); }

// Tensors are copied with pread: what is read never becomes resident as mapped pages, and a file that shrinks
// meanwhile is an error and not SIGBUS.
class Shard {
 public:
  static Result<std::unique_ptr<Shard>> open(const fs::path& path) {
    auto file = File::open_read(path.string());
    if (!file.ok()) return file.status();
    auto shard = std::unique_ptr<Shard>(new Shard(*std::move(file)));
    SLIM_ASSIGN(shard->tensors, read_safetensors_header(shard->file));
    return shard;
  }

  const File file;
  std::vector<StoredTensor> tensors;

 private:
  explicit Shard(File opened) : file(std::move(opened)) {}
};

bool ends_with_any(std::string name, const auto& endings) {
  std::ranges::transform(name, name.begin(),
                         [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return std::ranges::any_of(endings, [&](std::string_view ending) { return name.ends_with(ending); });
}

// Of the folder itself (depth 0) or also of its subfolders (depth 1); no hidden ones. A dangling link is an
// error: in a hub cache it is a file that was never downloaded. Links to folders are not followed: they may lead
// back here, or anywhere.
Status list_files(const fs::path& folder, const std::string& prefix, int depth,
                  std::vector<std::string>& files) {
  std::error_code error;
  fs::directory_iterator entries(folder, error);
  for (; !error && entries != fs::directory_iterator(); entries.increment(error)) {
    const std::string name = entries->path().filename().string();
    if (name.starts_with('.')) continue;
    std::error_code unknown;
    const fs::file_status status = fs::status(entries->path(), unknown);
    if (status.type() == fs::file_type::not_found) {
      return Status(Code::kNotFound,
                    entries->path().string() + ": the link leads to no file; download the checkpoint again");
    }
    if (fs::is_regular_file(status)) files.push_back(prefix + name);
    if (fs::is_directory(status) && depth > 0 && !fs::is_symlink(entries->symlink_status(unknown)))
      SLIM_TRY(list_files(entries->path(), prefix + name + "/", depth - 1, files));
  }
  if (error) return Status(Code::kIo, folder.string() + ": cannot list the folder: " + error.message());
  return {};
}

bool is_side_file(const std::string& name) {
  static constexpr std::array<std::string_view, 16> kOthers = {
      kWeights,  ".index.json", kChecksumFile, ".bin", ".pt",  ".pth",  ".ckpt", ".pkl",
      ".pickle", ".h5",         ".msgpack",    ".npz", ".npy", ".gguf", ".onnx", ".onnx_data"};
  return name != "config.json" && !ends_with_any(name, kOthers);
}

/// Tokenizers and images of models are smaller; copies of data and archives are not.
constexpr uintmax_t kLargestSideFile = uintmax_t{256} << 20;

/// True if a path below `folder` is a link that leads out of it. The blobs of the Hub's cache belong to its snapshots, and
/// the files of another checkpoint to a folder that was put together from them.
bool leads_outside(const fs::path& folder, const std::string& name) {
  std::error_code error;
  const fs::path target = fs::canonical(folder / name, error), root = fs::canonical(folder, error);
  const auto below = [&](const fs::path& base) {
    return std::mismatch(base.begin(), base.end(), target.begin(), target.end()).first == base.end();
  };
  if (error || below(root)) return false;
  if (root.parent_path().filename() == "snapshots" && below(root.parent_path().parent_path() / "blobs"))
    return false;
  return !fs::exists(target.parent_path() / "config.json", error);
}

std::string first_names(const std::vector<std::string>& names) {
  std::string text;
  for (size_t i = 0; i < std::min<size_t>(names.size(), 3); ++i) text += (i ? ", " : "") + names[i];
  return names.size() > 3 ? text + ", ..." : text;
}

using WeightMap = std::map<std::string, std::string>;  // tensor -> file

struct Layout {
  std::vector<std::string> shards;   // sorted
  std::optional<std::string> index;  // its file name
  WeightMap weight_map;              // only with an index
};

Result<WeightMap> parse_index(const std::string& text) {
  SLIM_ASSIGN(const Json json, parse_strict_json(text));
  const auto map = json.is_object() ? json.find("weight_map") : json.end();
  if (!json.is_object() || map == json.end() || !map->is_object())
    return corrupt("has no object 'weight_map'");
  WeightMap files;
  for (const auto& [tensor, value] : map->items()) {
    const std::string file = value.is_string() ? value.get<std::string>() : "";
    // A path would let the index read files outside the folder.
    if (!file.ends_with(kWeights) || file.starts_with('.') ||
        file.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos) {
      return corrupt("maps tensor '" + tensor + "' to " + value.dump() +
                     ", expected the name of a .safetensors file of the same folder");
    }
    files.emplace(tensor, file);
  }
  if (files.empty()) return corrupt("'weight_map' is empty");
  return files;
}

Result<Layout> find_layout(const fs::path& folder, const std::vector<std::string>& files) {
  std::vector<std::string> weights, indexes;
  for (const auto& file : files) {
    if (file.ends_with(kWeights)) weights.push_back(file);
    if (file.ends_with(kIndex)) indexes.push_back(file);
  }
  const auto have = [&](const std::vector<std::string>& names, std::string_view name) {
    return std::ranges::find(names, name) != names.end();
  };
  if (indexes.size() > 1) {
    if (!have(indexes, "model.safetensors.index.json")) {
      return corrupt(folder.string() + ": several indexes (" + first_names(indexes) +
                     "); keep the one that is meant");
    }
    indexes = {"model.safetensors.index.json"};
  }
  if (!indexes.empty()) {
    Layout layout{.shards = {}, .index = indexes[0], .weight_map = {}};
    const std::string path = (folder / indexes[0]).string();
    SLIM_ASSIGN(const std::string text, read_text(path, kMaxIndex));
    auto map = parse_index(text);
    if (!map.ok()) return map.status().in(path);
    layout.weight_map = *std::move(map);
    std::set<std::string> shards;
    for (const auto& [tensor, file] : layout.weight_map) shards.insert(file);
    if (have(weights, "model.safetensors") && !shards.contains("model.safetensors")) {
      return corrupt(folder.string() + ": has both model.safetensors and " + indexes[0] +
                     ", which does not name it; remove the one that is not meant");
    }
    layout.shards.assign(shards.begin(), shards.end());
    return layout;
  }
  if (have(weights, "model.safetensors")) return Layout{{"model.safetensors"}, {}, {}};
  if (weights.size() == 1) return Layout{weights, {}, {}};
  if (weights.empty()) {
    const bool others = std::ranges::any_of(
        files, [](const std::string& file) { return !is_side_file(file) && file != "config.json"; });
    if (have(files, kPartsFile))
      return Status(Code::kNotFound,
                    folder.string() + ": is compressed; unpack it with `slim compress --decompress`");
    return Status(Code::kNotFound,
                  folder.string() + ": has no *.safetensors file" +
                      (others ? "; weights of another kind must be saved as safetensors first" : ""));
  }
  return Status(Code::kNotFound, folder.string() + ": has " + std::to_string(weights.size()) +
                                     " safetensors files (" + first_names(weights) +
                                     ") but no model.safetensors.index.json that says which are meant");
}

/// What else a folder without config.json may be, and what to give instead; empty if it is nothing known.
std::string what_it_is(const fs::path& folder) {
  std::error_code error;
  if (fs::exists(folder / "adapter_config.json", error))
    return "; this is a LoRA adapter: merge it into its model (merge_and_unload of peft) and give the result";
  std::set<std::string> snapshots;
  for (const auto& entry : fs::directory_iterator(folder / "snapshots", error)) {
    if (fs::exists(entry.path() / "config.json", error)) snapshots.insert(entry.path().string());
  }
  if (snapshots.empty()) return "";
  return "; this is the root of a model in the Hub's cache: give " + *snapshots.begin() +
         (snapshots.size() > 1 ? ", or another of its " + std::to_string(snapshots.size()) + " snapshots"
                               : "");
}

Result<std::string> read_config(const fs::path& folder) {
  const std::string path = (folder / "config.json").string();
  auto text = read_text(path, kMaxConfig);
  if (!text.ok() && text.status().code() == Code::kNotFound) {
    return Status(Code::kNotFound, folder.string() +
                                       ": has no config.json; a Hugging Face checkpoint folder is expected" +
                                       what_it_is(folder));
  }
  if (!text.ok()) return text;
  const auto json = parse_strict_json(*text);
  if (!json.ok()) return json.status().in(path);
  if (!json->is_object()) return corrupt(path + ": is " + json->type_name() + ", expected a JSON object");
  return text;
}

}  // namespace

struct Checkpoint::State {
  struct Place {
    const Shard* shard;
    const StoredTensor* stored;
  };

  std::string folder, config;
  std::vector<std::unique_ptr<Shard>> shards;
  std::vector<std::string> weight_files, side_files, outside_links;
  std::map<std::string, std::vector<std::string>> left_files;
  std::map<std::string, TensorSpec> tensors;
  std::map<std::string, Place, std::less<>> places;
  int64_t total_bytes = 0;

  /// Where a file beside the weights is listed.
  std::vector<std::string>& list_of(const std::string& name) {
    if (leads_outside(folder, name)) return outside_links;
    if (!is_utf8(name)) return left_files["the name is not UTF-8"];
    std::error_code error;
    const auto size = fs::file_size(fs::path(folder) / name, error);
    return !error && size > kLargestSideFile ? left_files["larger than " + bytes_text(kLargestSideFile)]
                                             : side_files;
  }

  Status open_shard(const std::string& name) {
    auto shard = Shard::open(fs::path(folder) / name);
    if (!shard.ok() && shard.status().code() == Code::kNotFound) {
      return Status(Code::kNotFound, folder + ": " + name +
                                         " is missing, which the index names; download the checkpoint again");
    }
    if (!shard.ok()) return shard.status();
    for (const auto& stored : (*shard)->tensors) {
      const auto [place, fresh] = places.try_emplace(stored.spec.name, Place{shard->get(), &stored});
      if (!fresh) {
        return corrupt((*shard)->file.path() + ": tensor '" + stored.spec.name + "' is also in " +
                       place->second.shard->file.path());
      }
      tensors.emplace(stored.spec.name, stored.spec);
      total_bytes += stored.end - stored.begin;
    }
    shards.push_back(*std::move(shard));
    return {};
  }

  Status check_index(const Layout& layout) const {
    const std::string index = (fs::path(folder) / *layout.index).string();
    for (const auto& [tensor, file] : layout.weight_map) {
      const auto place = places.find(tensor);
      if (place == places.end())
        return corrupt(index + ": tensor '" + tensor + "' is not in " + file +
                       "; one of the two files is from elsewhere");
      const std::string found = fs::path(place->second.shard->file.path()).filename().string();
      if (found != file)
        return corrupt(index + ": tensor '" + tensor + "' is said to be in " + file + ", but is in " + found);
    }
    for (const auto& [tensor, place] : places) {
      if (!layout.weight_map.contains(tensor)) {
        return corrupt(place.shard->file.path() + ": tensor '" + tensor + "' is not in " + *layout.index +
                       "; one of the two files is from elsewhere");
      }
    }
    return {};
  }

  Result<Place> find(std::string_view name) const {
    const auto place = places.find(name);
    if (place == places.end())
      return Status(Code::kNotFound, folder + ": has no tensor '" + std::string(name) + "'");
    return place->second;
  }
};

namespace {

Status tensor_error(const auto& place, Code code, const std::string& message) {
  return Status(code, place.shard->file.path() + ": tensor '" + place.stored->spec.name + "': " + message);
}

Result<at::Tensor> new_tensor(const auto& place, const std::vector<int64_t>& shape) {
  const auto& spec = place.stored->spec;
  const auto type = to_scalar_type(spec.dtype);
  if (!type) {
    return tensor_error(place, Code::kUnsupported,
                        std::string(dtype_name(spec.dtype)) +
                            " elements are smaller than a byte: they can be copied but not computed with");
  }
  try {
    return at::empty(shape, *type);
  } catch (const std::exception&) {
    return tensor_error(place, Code::kOutOfMemory,
                        "no memory for " + shape_string(shape) + " " + std::string(dtype_name(spec.dtype)));
  }
}

std::span<std::byte> writable_bytes(const at::Tensor& tensor) {
  return {static_cast<std::byte*>(tensor.data_ptr()), tensor.nbytes()};
}

}  // namespace

Checkpoint::Checkpoint() : state_(std::make_unique<State>()) {}
Checkpoint::~Checkpoint() = default;

Result<std::shared_ptr<const Checkpoint>> Checkpoint::open(const std::string& folder) {
  std::error_code error;
  const auto status = fs::status(folder, error);
  if (status.type() == fs::file_type::not_found)
    return Status(Code::kNotFound, folder + ": no such folder; a downloaded checkpoint is expected");
  if (!fs::is_directory(status))
    return Status(Code::kInvalidArgument, folder + ": is no folder; name the folder that holds config.json");

  std::shared_ptr<Checkpoint> checkpoint(new Checkpoint);
  State& state = *checkpoint->state_;
  state.folder = folder;
  SLIM_ASSIGN(state.config, read_config(folder));
  std::vector<std::string> top, all;
  SLIM_TRY(list_files(folder, "", 0, top));
  std::ranges::sort(top);
  SLIM_ASSIGN(const Layout layout, find_layout(folder, top));
  state.weight_files = layout.shards;
  for (const auto& shard : layout.shards) SLIM_TRY(state.open_shard(shard));
  if (layout.index) SLIM_TRY(state.check_index(layout));
  if (state.tensors.empty()) return corrupt(state.shards[0]->file.path() + ": holds no tensor");

  SLIM_TRY(list_files(folder, "", 1, all));
  std::ranges::sort(all);
  for (const std::string& name : all) {
    if (is_side_file(name)) state.list_of(name).push_back(name);
  }
  return std::shared_ptr<const Checkpoint>(checkpoint);
}

const std::string& Checkpoint::folder() const { return state_->folder; }
const std::string& Checkpoint::config_json() const { return state_->config; }
const std::map<std::string, TensorSpec>& Checkpoint::tensors() const { return state_->tensors; }
const std::vector<std::string>& Checkpoint::side_files() const { return state_->side_files; }
const std::vector<std::string>& Checkpoint::outside_links() const { return state_->outside_links; }
const std::map<std::string, std::vector<std::string>>& Checkpoint::left_files() const {
  return state_->left_files;
}
const std::vector<std::string>& Checkpoint::weight_files() const { return state_->weight_files; }
int64_t Checkpoint::total_bytes() const { return state_->total_bytes; }

std::string Checkpoint::file_of(std::string_view name) const {
  const auto place = state_->find(name);
  return place.ok() ? place->shard->file.path() : std::string();
}

Result<at::Tensor> Checkpoint::read(std::string_view name) const {
  SLIM_ASSIGN(const auto place, state_->find(name));
  SLIM_ASSIGN(at::Tensor tensor, new_tensor(place, place.stored->spec.shape));
  SLIM_TRY(place.shard->file.read_at(place.stored->begin, writable_bytes(tensor)));
  return tensor;
}

Result<at::Tensor> Checkpoint::read_rows(std::string_view name, const at::Tensor& ids) const {
  SLIM_ASSIGN(const auto place, state_->find(name));
  const auto& shape = place.stored->spec.shape;
  if (shape.size() != 2)
    return tensor_error(place, Code::kInvalidArgument,
                        "has the shape " + shape_string(shape) + ", rows need two dimensions");
  if (ids.scalar_type() != at::kLong || ids.dim() != 1)
    return tensor_error(place, Code::kInvalidArgument, "row numbers must be int64 [n]");
  const at::Tensor rows = ids.cpu().contiguous();
  const std::span<const int64_t> wanted(rows.const_data_ptr<int64_t>(), static_cast<size_t>(rows.numel()));
  for (const int64_t row : wanted) {
    if (row < 0 || row >= shape[0]) {
      return tensor_error(place, Code::kInvalidArgument,
                          "row " + std::to_string(row) + " is asked for, it has " + std::to_string(shape[0]));
    }
  }
  SLIM_ASSIGN(at::Tensor tensor, new_tensor(place, {rows.numel(), shape[1]}));
  const std::span<std::byte> into = writable_bytes(tensor);
  const size_t width = wanted.empty() ? 0 : into.size() / wanted.size();
  for (size_t i = 0; i < wanted.size(); ++i) {
    SLIM_TRY(place.shard->file.read_at(place.stored->begin + wanted[i] * static_cast<int64_t>(width),
                                       into.subspan(i * width, width)));
  }
  return tensor;
}

Result<at::Tensor> Checkpoint::read_entry(std::string_view name, int64_t index) const {
  SLIM_ASSIGN(const auto place, state_->find(name));
  const auto& shape = place.stored->spec.shape;
  if (shape.empty() || index < 0 || index >= shape[0]) {
    return tensor_error(
        place, Code::kInvalidArgument,
        "entry " + std::to_string(index) + " is asked for, the shape is " + shape_string(shape));
  }
  SLIM_ASSIGN(at::Tensor tensor, new_tensor(place, std::vector<int64_t>(shape.begin() + 1, shape.end())));
  const std::span<std::byte> into = writable_bytes(tensor);
  SLIM_TRY(place.shard->file.read_at(place.stored->begin + index * static_cast<int64_t>(into.size()), into));
  return tensor;
}

Status Checkpoint::read_bytes(std::string_view name, int64_t offset, std::span<std::byte> into) const {
  SLIM_ASSIGN(const auto place, state_->find(name));
  const int64_t size = place.stored->end - place.stored->begin;
  if (offset < 0 || offset > size || static_cast<int64_t>(into.size()) > size - offset) {
    return tensor_error(place, Code::kInvalidArgument,
                        std::to_string(into.size()) + " bytes at " + std::to_string(offset) +
                            " are asked for, it has " + std::to_string(size));
  }
  return place.shard->file.read_at(place.stored->begin + offset, into);
}

void Checkpoint::prefetch(std::string_view name) const {
  const auto place = state_->find(name);
  if (!place.ok()) return;
  const auto& [shard, stored] = *place;
  ::posix_fadvise(shard->file.fd(), stored->begin, stored->end - stored->begin, POSIX_FADV_WILLNEED);
}

}  // namespace slim
