#include "plugin/compatibility.h"

#include <torch/headeronly/version.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>

#include "slim/interface.hpp"
#include "slim/version.hpp"

namespace slim {
namespace {

/// Fingerprints of older interface headers whose plugins this slim still serves: an addition that they need not know (see
/// docs/compatibility.md) puts the fingerprint before it here.
constexpr std::array<std::string_view, 0> kServedInterfaces{};

std::string api_text(const AbiFacts& facts) {
  return std::to_string(facts.api_major) + "." + std::to_string(facts.api_minor);
}

Status differs(const std::string& what, const std::string& plugin, const std::string& host,
               const AbiFacts& host_side) {
  return Status(Code::kIncompatible,
                "the plugin was built with " + what + " " + plugin + ", this slim with " + host +
                    "; rebuild the plugin against slim " SLIM_VERSION " (API " + api_text(host_side) +
                    ", LibTorch " + host_side.torch + ", build tag " + host_side.build_tag + ", interface " +
                    host_side.interface + ")");
}

bool serves_interface(const std::string& plugin, const std::string& host) {
  return plugin == host ||
         std::find(kServedInterfaces.begin(), kServedInterfaces.end(), plugin) != kServedInterfaces.end();
}

/// "major.minor"
bool parse_api(const std::string& text, AbiFacts& facts) {
  const char* const end = text.data() + text.size();
  const auto major = std::from_chars(text.data(), end, facts.api_major);
  if (major.ec != std::errc{} || major.ptr == end || *major.ptr != '.') return false;
  const auto minor = std::from_chars(major.ptr + 1, end, facts.api_minor);
  return minor.ec == std::errc{} && minor.ptr == end;
}

Status check_component(const slim_component& component) {
  const auto broken = [](const std::string& what) {
    return Status(Code::kCorrupt, "broken plugin: a component of slim_plugin_v1 " + what);
  };
  if (component.struct_size < sizeof(slim_component)) return broken("is shorter than this slim expects");
  if (component.kind < SLIM_ALGORITHM || component.kind > SLIM_FORMAT) return broken("is of an unknown kind");
  if (!component.id || !component.summary || !component.options_schema || !component.serves) {
    return broken("lacks its id, summary, options_schema or serves");
  }
  if (!component.create || !component.destroy) return broken("has no create or no destroy");
  return {};
}

}  // namespace

const slim_component& component_at(const slim_plugin& plugin, uint32_t i) {
  const auto* first = reinterpret_cast<const std::byte*>(plugin.components);
  return *reinterpret_cast<const slim_component*>(first + size_t{i} * plugin.components->struct_size);
}

AbiFacts host_facts() {
  AbiFacts facts;
  facts.api_major = SLIM_API_MAJOR;
  facts.api_minor = SLIM_API_MINOR;
  facts.torch = TORCH_VERSION;
  facts.torch_abi = TORCH_ABI_VERSION;
  facts.cxx11_abi = std::to_string(_GLIBCXX_USE_CXX11_ABI);
  facts.gxx_abi = std::to_string(__GXX_ABI_VERSION);
  facts.build_tag = SLIM_BUILD_TAG;
  facts.interface = SLIM_INTERFACE;
  return facts;
}

Result<AbiFacts> facts_of(const std::map<std::string, std::string>& metadata) {
  AbiFacts facts;
  std::string api;
  const std::pair<const char*, std::string*> entries[] = {{"api", &api},
                                                          {"torch", &facts.torch},
                                                          {"cxx11_abi", &facts.cxx11_abi},
                                                          {"gxx_abi", &facts.gxx_abi},
                                                          {"build_tag", &facts.build_tag}};
  for (const auto& [key, value] : entries) {
    const auto found = metadata.find(key);
    if (found == metadata.end()) {
      return Status(Code::kCorrupt, std::string("broken plugin: its section slim_meta lacks '") + key + "'");
    }
    *value = found->second;
  }
  if (!parse_api(api, facts)) {
    return Status(Code::kCorrupt,
                  "broken plugin: api '" + api + "' in its section slim_meta, expected MAJOR.MINOR");
  }
  const auto interface = metadata.find("interface");
  facts.interface = interface == metadata.end() ? "without a fingerprint" : interface->second;
  return facts;
}

AbiFacts facts_of(const slim_plugin& plugin) {
  AbiFacts facts;
  facts.api_major = plugin.api_major;
  facts.api_minor = plugin.api_minor;
  facts.torch = plugin.torch_version;
  facts.torch_abi = plugin.torch_abi;
  facts.cxx11_abi = std::to_string(plugin.cxx11_abi);
  facts.gxx_abi = std::to_string(plugin.gxx_abi);
  facts.build_tag = plugin.build_tag;
  return facts;
}

Status check_compatible(const AbiFacts& plugin, const AbiFacts& host) {
  if (plugin.api_major != host.api_major || plugin.api_minor > host.api_minor) {
    return differs("slim API", api_text(plugin), api_text(host), host);
  }
  if (plugin.torch != host.torch) return differs("LibTorch", plugin.torch, host.torch, host);
  if (plugin.torch_abi != 0 && plugin.torch_abi != host.torch_abi) {
    return differs("LibTorch ABI", std::to_string(plugin.torch_abi), std::to_string(host.torch_abi), host);
  }
  if (plugin.cxx11_abi != host.cxx11_abi) {
    return differs("_GLIBCXX_USE_CXX11_ABI", plugin.cxx11_abi, host.cxx11_abi, host);
  }
  if (plugin.gxx_abi != host.gxx_abi) return differs("__GXX_ABI_VERSION", plugin.gxx_abi, host.gxx_abi, host);
  if (plugin.build_tag != host.build_tag) {
    return differs("build tag", plugin.build_tag, host.build_tag, host);
  }
  if (!plugin.interface.empty() && !serves_interface(plugin.interface, host.interface)) {
    return differs("interface headers", plugin.interface, host.interface, host);
  }
  return {};
}

Status check_descriptor(const slim_plugin& plugin) {
  const auto broken = [](const std::string& what) {
    return Status(Code::kCorrupt, "broken plugin: " + what);
  };
  if (plugin.magic != SLIM_MAGIC) return broken("slim_plugin_v1 does not start with the magic number");
  if (plugin.struct_size < sizeof(slim_plugin) || plugin.abi_version < SLIM_ABI_VERSION) {
    return broken("slim_plugin_v1 has " + std::to_string(plugin.struct_size) + " bytes, layout " +
                  std::to_string(plugin.abi_version) + "; expected at least " +
                  std::to_string(sizeof(slim_plugin)) + ", layout " + std::to_string(SLIM_ABI_VERSION));
  }
  if (!plugin.torch_version || !plugin.build_tag)
    return broken("slim_plugin_v1 lacks torch_version or build_tag");
  constexpr uint32_t kMostComponents = 256;
  if (plugin.n_components == 0 || plugin.n_components > kMostComponents || !plugin.components) {
    return broken("slim_plugin_v1 lists " + std::to_string(plugin.n_components) +
                  " components, expected 1 to " + std::to_string(kMostComponents));
  }
  for (uint32_t i = 0; i < plugin.n_components; ++i) SLIM_TRY(check_component(component_at(plugin, i)));
  return {};
}

}  // namespace slim
