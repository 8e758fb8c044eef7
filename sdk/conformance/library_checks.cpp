// What every plugin must be, whatever it does: the file, its descriptor, loading, making and destroying its object.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <c10/core/DefaultDtype.h>
#include <c10/core/GradMode.h>
#include <dlfcn.h>
#include <link.h>
#include <unistd.h>

#include <clocale>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "check.h"
#include "plugin/elf_metadata.h"
#include "plugin/scan.h"

extern char** environ;

namespace slim::conformance {
namespace {

/// An object of the plugin, whatever its kind.
Result<std::shared_ptr<void>> make(PluginRegistry& registry, const PluginInfo& info) {
  const auto keep = [](auto result) -> Result<std::shared_ptr<void>> {
    if (!result.ok()) return result.status();
    return std::shared_ptr<void>(std::shared_ptr(*std::move(result)));
  };
  switch (info.kind) {
    case SLIM_ALGORITHM:
      return keep(registry.algorithm(info.path));
    case SLIM_ADAPTER:
      return keep(registry.adapter(info.path));
    case SLIM_BACKEND:
      return keep(registry.backend(info.path));
    case SLIM_FORMAT:
      return keep(registry.format(info.path));
  }
  return failure("its kind is unknown");
}

Status make_once(const PluginInfo& info) {
  PluginRegistry registry;
  return make(registry, info).status();
}

Result<Outcome> loads(const Subject& subject) {
  SLIM_TRY(Status(subject.info.compatible));
  SLIM_TRY(make_once(subject.info));
  return Outcome{};
}

/// Everything that the file says before it is loaded is what its descriptor says afterwards.
Result<Outcome> metadata(const Subject& subject) {
  SLIM_TRY(make_once(subject.info));
  void* const handle = dlopen(subject.info.path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
  const auto* plugin = handle ? static_cast<const slim_plugin*>(dlsym(handle, "slim_plugin_v1")) : nullptr;
  if (!plugin) return failure("it is not loaded, or exports no slim_plugin_v1");
  const slim_component& component = *plugin->components;
  const PluginInfo& info = subject.info;
  const std::pair<const char*, std::pair<std::string, const char*>> facts[] = {
      {"id", {info.id, component.id}},
      {"summary", {info.summary, component.summary}},
      {"serves", {info.serves, component.serves}},
      {"name", {info.name, plugin->name}},
      {"version", {info.version, plugin->version}},
      {"vendor", {info.vendor, plugin->vendor}},
      {"license", {info.license, plugin->license}},
      {"torch", {info.torch, plugin->torch_version}},
      {"compiler", {info.compiler, plugin->compiler}},
      {"build_tag", {info.build_tag, plugin->build_tag}}};
  for (const auto& [key, values] : facts) {
    if (values.second && values.first == values.second) continue;
    return failure(std::string("its section slim_meta says ") + key + " '" + values.first +
                   "', its descriptor '" + (values.second ? values.second : "") +
                   "'; write both with a SLIM_*_PLUGIN macro");
  }
  if (info.license.empty()) return failure("it names no licence; define SLIM_PLUGIN_LICENSE");
  return Outcome{};
}

Result<std::string> file_bytes(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  std::ostringstream text;
  text << stream.rdbuf();
  if (!stream) return Status(Code::kIo, path + ": cannot be read");
  return text.str();
}

Result<Outcome> exports(const Subject& subject) {
  SLIM_ASSIGN(const std::string bytes, file_bytes(subject.info.path));
  SLIM_ASSIGN(const LibraryFacts facts, read_library_facts(std::as_bytes(std::span(bytes))));
  std::string others;
  size_t count = 0;
  for (const std::string& symbol : facts.exported) {
    if (symbol == "slim_plugin_v1") continue;
    if (++count <= 3) others += (others.empty() ? "" : ", ") + symbol;
  }
  if (count == 0) return Outcome{};
  return failure("it exports " + std::to_string(count) + " symbols besides slim_plugin_v1 (" + others +
                 "), which may clash with other plugins'; link it with slim_add_plugin");
}

int collect_library(dl_phdr_info* info, size_t, void* into) {
  static_cast<std::vector<std::string>*>(into)->push_back(info->dlpi_name);
  return 0;
}

Result<Outcome> one_torch(const Subject& subject) {
  SLIM_TRY(make_once(subject.info));
  std::vector<std::string> paths;
  dl_iterate_phdr(&collect_library, &paths);
  std::map<std::string, std::set<std::string>> copies;
  for (const std::string& path : paths) {
    const std::string name = std::filesystem::path(path).filename().string();
    if (name.starts_with("libc10.so") || name.starts_with("libtorch_cpu.so")) copies[name].insert(path);
  }
  for (const auto& [name, files] : copies) {
    if (files.size() > 1)
      return failure("after loading it there are two of " + name + ": " + *files.begin() + " and " +
                     *files.rbegin());
  }
  return Outcome{};
}

Result<Outcome> no_growth(const Subject& subject) {
  PluginRegistry registry;
  const auto many = [&](int times) -> Status {
    for (int i = 0; i < times; ++i) SLIM_TRY(make(registry, subject.info).status());
    return {};
  };
  SLIM_TRY(many(200));
  const int64_t before = resident_kilobytes();
  SLIM_TRY(many(1000));
  const int64_t grown = resident_kilobytes() - before;
  constexpr int64_t kNoise = 1024;  // pages that the allocator keeps
  if (grown > kNoise)
    return failure("making and destroying it 1000 times took " + std::to_string(grown) +
                   " KiB that were not given back");
  return Outcome{};
}

Result<Outcome> twice(const Subject& subject) {
  PluginRegistry first, second;
  SLIM_ASSIGN(const auto a, make(first, subject.info));
  SLIM_ASSIGN(const auto b, make(second, subject.info));
  return a.get() != b.get() ? Result<Outcome>(Outcome{}) : failure("its factory gives the same object twice");
}

/// What all code of a process shares.
std::map<std::string, std::string> process_state() {
  std::map<std::string, std::string> state;
  state["the working directory"] = std::filesystem::current_path().string();
  state["the locale"] = std::setlocale(LC_ALL, nullptr);
  for (char** entry = environ; *entry; ++entry) state["the environment"] += std::string(*entry) + "\n";
  state["LibTorch's gradient mode"] = at::GradMode::is_enabled() ? "on" : "off";
  state["LibTorch's default dtype"] = c10::toString(c10::get_default_dtype_as_scalartype());
  state["LibTorch's number of threads"] = std::to_string(at::get_num_threads());
  const at::Tensor generator = at::detail::getDefaultCPUGenerator().get_state();
  state["LibTorch's random generator"] =
      std::string(static_cast<const char*>(generator.const_data_ptr()), generator.nbytes());
  return state;
}

/// Standard output as a file: what was written to it while `body` ran.
template <class Body>
Result<std::string> written_to_stdout(Body&& body) {
  FILE* const file = std::tmpfile();
  if (!file) return Status(Code::kIo, "no temporary file can be made");
  std::fflush(stdout);
  const int saved = dup(STDOUT_FILENO);
  dup2(fileno(file), STDOUT_FILENO);
  const Status status = body();
  std::fflush(stdout);
  dup2(saved, STDOUT_FILENO);
  close(saved);
  std::rewind(file);
  std::string text(200, '\0');
  text.resize(std::fread(text.data(), 1, text.size(), file));
  std::fclose(file);
  if (!status.ok()) return status;
  return text;
}

Result<Outcome> leaves_process_alone(const Subject& subject) {
  const auto before = process_state();
  SLIM_ASSIGN(const std::string text, written_to_stdout([&] { return make_once(subject.info); }));
  if (!text.empty())
    return failure("loading it writes to standard output, which belongs to the host: '" + text + "'");
  for (const auto& [name, value] : process_state()) {
    if (before.at(name) != value) return failure("loading it, or making its object, changes " + name);
  }
  return Outcome{};
}

}  // namespace

std::vector<Check> library_checks() {
  return {{"library/loads", "the file is compatible, loads, and makes its object", &loads},
          {"library/metadata", "slim_meta says the same as the descriptor", &metadata},
          {"library/exports", "slim_plugin_v1 is the only exported symbol", &exports},
          {"library/one-torch", "no second copy of LibTorch comes with it", &one_torch},
          {"library/no-growth", "1000 objects made and destroyed leave no memory behind", &no_growth},
          {"library/twice", "two hosts in one process get objects of their own", &twice},
          {"library/process",
           "loading writes nothing to standard output and changes nothing that a process shares",
           &leaves_process_alone}};
}

}  // namespace slim::conformance
