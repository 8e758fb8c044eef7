#include "run/open_backend.h"

#include <algorithm>

#include "plugin/guard.h"

namespace slim {
namespace {

Result<OpenBackend> open_one(const std::string& id, PluginRegistry& registry) {
  SLIM_ASSIGN(Owned<Backend> backend, registry.backend(id));
  SLIM_TRY(guarded("backend " + id, [&] { return backend->open({}); }));
  if (backend->device_type() != c10::DeviceType::CPU) {
    return Status(Code::kUnsupported, "backend " + id + ": the device is there, but runs compute on the CPU only in this version; use --backend cpu");
  }
  return OpenBackend{id, std::move(backend)};
}

}  // namespace

Result<OpenBackend> open_backend(const std::string& wanted, PluginRegistry& registry) {
  if (wanted != "auto") return open_one(wanted, registry);
  const std::vector<PluginInfo> plugins = registry.list();
  for (const std::string id : kBackendsByRank) {
    const bool there = std::any_of(plugins.begin(), plugins.end(), [&](const PluginInfo& info) {
      return info.kind == SLIM_BACKEND && info.id == id && info.shadowed_by.empty() && info.compatible.ok();
    });
    if (!there) continue;
    Result<OpenBackend> opened = open_one(id, registry);
    if (opened.ok() || id == std::string("cpu")) return opened;
  }
  return Status(Code::kNotFound, "no backend plugin is on the search path; see `slim plugins list`");
}

}  // namespace slim
