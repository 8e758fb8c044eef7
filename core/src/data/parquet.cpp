#include <dlfcn.h>

#include <array>
#include <filesystem>

#include "data/dataset.h"
#include "data/parquet_component.h"

namespace slim {
namespace {
namespace fs = std::filesystem;

/// lib/slim/components/libslim_parquet.so beside libslim_core.so.
fs::path component_path() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&component_path), &info) == 0) return {};
  std::error_code error;
  const fs::path core = fs::canonical(info.dli_fname, error);
  return core.parent_path() / "slim" / "components" / "libslim_parquet.so";
}

constexpr const char* kRemedy =
    "; install pyarrow (`.venv/bin/python -m pip install -r sdk/arrow.txt`) and build slim again, or convert "
    "the "
    "table to .jsonl, one row a line";

Result<slim_parquet_read_function> load_component() {
  const fs::path path = component_path();
  std::error_code error;
  if (!fs::exists(path, error)) {
    return Status(Code::kUnsupported,
                  "this build of slim reads no parquet: '" + path.string() + "' is missing" + kRemedy);
  }
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    return Status(Code::kIncompatible,
                  std::string("the reader of parquet files cannot be loaded: ") + dlerror() + kRemedy);
  }
  void* const function = dlsym(library, SLIM_PARQUET_READ);
  if (!function) {
    return Status(Code::kIncompatible,
                  "'" + path.string() + "' belongs to another version of slim" + kRemedy);
  }
  return reinterpret_cast<slim_parquet_read_function>(function);
}

/// The sink behind the C interface; keeps the Status that stopped the reading.
struct Relay {
  const TableSink& sink;
  Status stop;

  static int columns(void* context, const char* const* names, size_t count, uint8_t* wanted) {
    auto& relay = *static_cast<Relay*>(context);
    const auto flags = relay.sink.columns({names, names + count});
    relay.stop = flags.status();
    for (size_t i = 0; flags.ok() && i < count; ++i) wanted[i] = (*flags)[i];
    return !flags.ok();
  }
  static int row(void* context, const uint8_t* cbor, size_t size) {
    auto& relay = *static_cast<Relay*>(context);
    relay.stop = relay.sink.row({cbor, size});
    return !relay.stop.ok();
  }
};

}  // namespace

Status read_parquet(const std::string& path, const TableSink& sink) {
  static const Result<slim_parquet_read_function> read = load_component();
  if (!read.ok()) return read.status().in(path);
  Relay relay{sink, {}};
  std::array<char, 1024> error{};
  const slim_parquet_reading reading{path.c_str(), &relay,       &Relay::columns,
                                     &Relay::row,  error.data(), error.size()};
  const int failed = (*read)(&reading);
  SLIM_TRY(relay.stop);
  return failed ? Status(Code::kCorrupt, path + ": " + error.data()) : Status{};
}

}  // namespace slim
