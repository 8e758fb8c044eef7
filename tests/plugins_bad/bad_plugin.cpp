// A plugin without LibTorch, written out by hand so that one fact can be wrong: FAULT_* says which.
#include <torch/headeronly/version.h>

#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "slim/abi.h"
#include "slim/interface.hpp"
#include "slim/version.hpp"

namespace {

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

#ifdef FAULT_OTHER_TORCH
#define META_TORCH "9.99.0"
#else
#define META_TORCH TORCH_VERSION
#endif
#ifdef FAULT_OTHER_BUILD_TAG
#define META_BUILD_TAG "slim-0.1-other"
#else
#define META_BUILD_TAG SLIM_BUILD_TAG
#endif
#ifdef FAULT_NEWER_API
#define META_API "0.99"
#else
#define META_API TEXT(SLIM_API_MAJOR) "." TEXT(SLIM_API_MINOR)
#endif
#if defined(FAULT_OTHER_INTERFACE)
#define META_INTERFACE "\0interface=0123456789abcdef"
#elif defined(FAULT_NO_INTERFACE)
#define META_INTERFACE ""
#else
#define META_INTERFACE "\0interface=" SLIM_INTERFACE
#endif
#ifdef FAULT_STALE_DESCRIPTOR
constexpr const char* kTorch = "1.0.0";
#else
constexpr const char* kTorch = TORCH_VERSION;
#endif
#ifdef FAULT_OTHER_CXX_ABI
#define META_CXX11_ABI "0"
#else
#define META_CXX11_ABI TEXT(_GLIBCXX_USE_CXX11_ABI)
#endif
#ifdef FAULT_OTHER_COMPILER_ABI
#define META_GXX_ABI "9999"
#else
#define META_GXX_ABI TEXT(__GXX_ABI_VERSION)
#endif
#ifdef FAULT_BAD_SCHEMA
constexpr const char* kSchema = R"({"properties":{"grid":{"type":"tensor"}}})";
#else
constexpr const char* kSchema = "{}";
#endif

#if defined(FAULT_OTHER_TORCH) || defined(FAULT_OTHER_BUILD_TAG) || defined(FAULT_NEWER_API) || defined(FAULT_OTHER_CXX_ABI) || \
    defined(FAULT_OTHER_COMPILER_ABI) || defined(FAULT_SECOND_TORCH) || defined(FAULT_OTHER_INTERFACE) || \
    defined(FAULT_NO_INTERFACE)
/// None of these files may ever be opened: their code would end the process.
struct MustNotRun {
  MustNotRun() { std::abort(); }
} must_not_run;
#endif

#ifndef FAULT_NO_DESCRIPTOR
void* create(const void*, [[maybe_unused]] slim_error* error) {
#if defined(FAULT_THROWS)
  throw std::runtime_error("the factory broke its promise");
#elif defined(FAULT_REPORTS_ERROR)
  error->code = 3;                                          // slim::Code::kUnsupported
  std::memset(error->message, 'x', sizeof error->message);  // without an end
#endif
  return nullptr;
}
void destroy(void*) {}

const slim_component component = {
    sizeof(slim_component), SLIM_ALGORITHM, BAD_ID, "wrong in one way", kSchema, "", &create, &destroy};
#endif
#ifndef FAULT_NO_METADATA
__attribute__((section("slim_meta"), used, retain)) const char metadata[] =
    "slim=1\0kind=algorithm\0id=" BAD_ID
    "\0summary=wrong in one way\0serves=\0name=bad\0version=1\0vendor=test\0license=none"
    "\0api=" META_API "\0torch=" META_TORCH "\0cxx11_abi=" META_CXX11_ABI
    "\0gxx_abi=" META_GXX_ABI "\0compiler=" __VERSION__ "\0build_tag=" META_BUILD_TAG META_INTERFACE;
#endif

}  // namespace

#ifndef FAULT_NO_DESCRIPTOR
extern "C" __attribute__((visibility("default"), used))
const slim_plugin slim_plugin_v1 = {SLIM_MAGIC,
                                    sizeof(slim_plugin),
                                    SLIM_ABI_VERSION,
                                    SLIM_API_MAJOR,
                                    SLIM_API_MINOR,
                                    _GLIBCXX_USE_CXX11_ABI,
                                    __GXX_ABI_VERSION,
                                    static_cast<uint32_t>(__cplusplus),
                                    TORCH_ABI_VERSION,
                                    kTorch,
                                    __VERSION__,
                                    SLIM_BUILD_TAG,
                                    "bad",
                                    "1",
                                    "test",
                                    "none",
                                    1,
                                    &component};
#endif
