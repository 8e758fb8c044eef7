#pragma once
/// Included by exactly one source file of a plugin, which ends with one of
///   SLIM_ALGORITHM_PLUGIN("awq", Awq, "Activation-aware weight quantization", kSchema)
///   SLIM_ADAPTER_PLUGIN("qwen3vl", Qwen3Vl, "Qwen3-VL", "qwen3_vl,qwen3_vl_moe")
///   SLIM_BACKEND_PLUGIN("cpu", CpuBackend, "CPU kernels", kSchema)
///   SLIM_FORMAT_PLUGIN("compressed-tensors", CompressedTensors, "vLLM and transformers")
/// at file scope. Each writes the same facts twice from one place: a data symbol `slim_plugin_v1` for after dlopen, and an ELF
/// section `slim_meta` ("key=value\0"...) that the host reads before it.
#include <torch/headeronly/version.h>

#include <cstdio>
#include <exception>

#include "slim/abi.h"
#include "slim/adapter.hpp"
#include "slim/algorithm.hpp"
#include "slim/backend.hpp"
#include "slim/format.hpp"
#include "slim/interface.hpp"
#include "slim/version.hpp"

#ifndef SLIM_PLUGIN_VERSION
#define SLIM_PLUGIN_VERSION SLIM_VERSION
#endif
#ifndef SLIM_PLUGIN_VENDOR
#define SLIM_PLUGIN_VENDOR "slim"
#endif
#ifndef SLIM_PLUGIN_LICENSE
#define SLIM_PLUGIN_LICENSE "Apache-2.0"
#endif
/// Of a backend: `--backend auto` opens the one of the highest score that can be opened. 0: only where it is asked for by name.
#ifndef SLIM_PLUGIN_SCORE
#define SLIM_PLUGIN_SCORE 0
#endif
/// Of a format: names of schemes, comma separated, that are stored in it where the user names no format; "*": all that no other format claims.
#ifndef SLIM_PLUGIN_CLAIMS
#define SLIM_PLUGIN_CLAIMS ""
#endif

namespace slim::detail {
template <class Interface, class T>
void* create(const void*, slim_error* error) noexcept {
  try {
    return static_cast<Interface*>(new T());
  } catch (const std::exception& e) {
    error->code = static_cast<int32_t>(Code::kInternal);
    std::snprintf(error->message, sizeof error->message, "%s", e.what());
  } catch (...) {
    error->code = static_cast<int32_t>(Code::kInternal);
    std::snprintf(error->message, sizeof error->message, "the constructor threw something that is no std::exception");
  }
  return nullptr;
}
template <class Interface>
void destroy(void* object) noexcept {
  delete static_cast<Interface*>(object);
}
}  // namespace slim::detail

#define SLIM_STRINGIFY_(x) #x
#define SLIM_STRINGIFY(x) SLIM_STRINGIFY_(x)
#define SLIM_PLUGIN_(KIND, KIND_NAME, ID, INTERFACE, TYPE, SUMMARY, SCHEMA, SERVES)                                         \
  static const slim_component slim_component_ = {                                                                          \
      sizeof(slim_component), KIND, ID, SUMMARY, SCHEMA, SERVES, &::slim::detail::create<INTERFACE, TYPE>,                   \
      &::slim::detail::destroy<INTERFACE>};                                                                                \
  extern "C" __attribute__((visibility("default"), used)) const slim_plugin slim_plugin_v1 = {                             \
      SLIM_MAGIC, sizeof(slim_plugin), SLIM_ABI_VERSION, SLIM_API_MAJOR, SLIM_API_MINOR, _GLIBCXX_USE_CXX11_ABI,            \
      __GXX_ABI_VERSION, static_cast<uint32_t>(__cplusplus), TORCH_ABI_VERSION, TORCH_VERSION, __VERSION__,                \
      SLIM_BUILD_TAG, "slim-" ID, SLIM_PLUGIN_VERSION, SLIM_PLUGIN_VENDOR, SLIM_PLUGIN_LICENSE, 1, &slim_component_};       \
  __attribute__((section("slim_meta"), used, retain)) static const char slim_meta_[] =                                     \
      "slim=1\0kind=" KIND_NAME "\0id=" ID "\0summary=" SUMMARY "\0serves=" SERVES "\0name=slim-" ID                        \
      "\0version=" SLIM_PLUGIN_VERSION "\0vendor=" SLIM_PLUGIN_VENDOR "\0license=" SLIM_PLUGIN_LICENSE                     \
      "\0api=" SLIM_STRINGIFY(SLIM_API_MAJOR) "." SLIM_STRINGIFY(SLIM_API_MINOR) "\0torch=" TORCH_VERSION                  \
      "\0cxx11_abi=" SLIM_STRINGIFY(_GLIBCXX_USE_CXX11_ABI) "\0gxx_abi=" SLIM_STRINGIFY(__GXX_ABI_VERSION)                 \
      "\0compiler=" __VERSION__ "\0build_tag=" SLIM_BUILD_TAG "\0score=" SLIM_STRINGIFY(SLIM_PLUGIN_SCORE)                  \
      "\0claims=" SLIM_PLUGIN_CLAIMS "\0interface=" SLIM_INTERFACE

/// SCHEMA: a JSON Schema object; its "properties" have "type", "description", "default", "minimum", "maximum", "enum".
#define SLIM_ALGORITHM_PLUGIN(ID, TYPE, SUMMARY, SCHEMA) \
  SLIM_PLUGIN_(SLIM_ALGORITHM, "algorithm", ID, ::slim::Algorithm, TYPE, SUMMARY, SCHEMA, "");
/// SERVES: the values of config.json's model_type, comma separated.
#define SLIM_ADAPTER_PLUGIN(ID, TYPE, SUMMARY, SERVES) \
  SLIM_PLUGIN_(SLIM_ADAPTER, "adapter", ID, ::slim::ModelAdapter, TYPE, SUMMARY, "{}", SERVES);
#define SLIM_BACKEND_PLUGIN(ID, TYPE, SUMMARY, SCHEMA) \
  SLIM_PLUGIN_(SLIM_BACKEND, "backend", ID, ::slim::Backend, TYPE, SUMMARY, SCHEMA, "");
#define SLIM_FORMAT_PLUGIN(ID, TYPE, SUMMARY) \
  SLIM_PLUGIN_(SLIM_FORMAT, "format", ID, ::slim::Format, TYPE, SUMMARY, "{}", "");
