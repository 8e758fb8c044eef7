#include "model/open_backend.h"

#include <ATen/Context.h>

#include <algorithm>

#include "plugin/guard.h"

namespace slim {
namespace {

bool is_there(const std::string& id, const PluginRegistry& registry) {
  const std::vector<PluginInfo> plugins = registry.list();
  return std::any_of(plugins.begin(), plugins.end(), [&](const PluginInfo& info) {
    return info.kind == SLIM_BACKEND && info.id == id && info.shadowed_by.empty() && info.compatible.ok();
  });
}

Result<OpenBackend> open_one(const std::string& id, PluginRegistry& registry) {
  SLIM_ASSIGN(Owned<Backend> backend, registry.backend(id));
  SLIM_TRY(guarded("backend " + id, [&] { return backend->open({}); }));
  OpenBackend opened{id, std::move(backend), at::kCPU, {}};
  if (opened.backend->device_type() == c10::DeviceType::CPU) return opened;
  opened.device = at::Device(opened.backend->device_type(), 0);
  SLIM_TRY(guarded("backend " + id, [&]() -> Status {
    at::globalContext().lazyInitDevice(
        opened.device.type());  // its allocator then tells what memory there is
    return {};
  }));
  if (is_there("cpu", registry)) {
    SLIM_ASSIGN(opened.host, registry.backend("cpu"));
    SLIM_TRY(guarded("backend cpu", [&] { return opened.host->open({}); }));
  }
  return opened;
}

}  // namespace

Result<OpenBackend> open_backend(const std::string& wanted, PluginRegistry& registry) {
  if (wanted != "auto") return open_one(wanted, registry);
  Status last(Code::kNotFound, "no backend plugin is on the search path; see `slim plugins list`");
  for (const PluginInfo& info : registry.backends_by_score()) {
    Result<OpenBackend> opened = open_one(info.id, registry);
    if (opened.ok()) return opened;
    last = opened.status();
  }
  return last;
}

}  // namespace slim
