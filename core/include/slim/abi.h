/* slim/abi.h - the plugin descriptor: the only thing the host may read before it knows that both sides' C++ ABIs agree.
 * C99-clean. Structs only ever grow at their end; SLIM_ABI_VERSION counts their layout. See docs/adr/0001. */
#ifndef SLIM_ABI_H_
#define SLIM_ABI_H_
#include <stdint.h>

#define SLIM_MAGIC 0x4D494C53u /* "SLIM" */
#define SLIM_ABI_VERSION 1u
#define SLIM_API_MAJOR 0 /* C++ interfaces: host and plugin must be equal */
#define SLIM_API_MINOR 1 /* the host's must be at least the plugin's */

#ifdef __cplusplus
extern "C" {
#endif

/** What a component is. */
typedef enum slim_kind { SLIM_ALGORITHM = 1, SLIM_ADAPTER = 2, SLIM_BACKEND = 3, SLIM_FORMAT = 4 } slim_kind;

/** An error. Owned by the caller, so that no allocator crosses the boundary. */
typedef struct slim_error {
  int32_t code;       /**< a slim::Code; 0: none */
  char message[1020]; /**< UTF-8, ends with '\0' */
} slim_error;

/** One thing that a plugin offers. Strings are UTF-8 in static storage. */
typedef struct slim_component {
  uint32_t struct_size;                         /**< of this struct, in bytes, as the plugin knows it */
  uint32_t kind;                                /**< slim_kind */
  const char *id;                               /**< "awq" */
  const char *summary;                          /**< one line for `slim plugins list` */
  const char *options_schema;                   /**< JSON Schema object of the options; "{}" for none */
  const char *serves;                           /**< adapters: model_type values, comma separated; else "" */
  void *(*create)(const void *host, slim_error *); /**< never throws; slim::Algorithm* etc. by kind, null with an error */
  void (*destroy)(void *);                      /**< never throws; objects die in the module that made them */
} slim_component;

/** What a plugin's library exports as `slim_plugin_v1`. Strings are UTF-8 in static storage. */
typedef struct slim_plugin {
  uint32_t magic;                   /**< SLIM_MAGIC */
  uint32_t struct_size;             /**< of this struct, in bytes, as the plugin knows it */
  uint32_t abi_version;             /**< SLIM_ABI_VERSION */
  uint32_t api_major;               /**< SLIM_API_MAJOR */
  uint32_t api_minor;               /**< SLIM_API_MINOR */
  uint32_t cxx11_abi;               /**< _GLIBCXX_USE_CXX11_ABI */
  uint32_t gxx_abi;                 /**< __GXX_ABI_VERSION */
  uint32_t cplusplus;               /**< __cplusplus */
  uint64_t torch_abi;               /**< TORCH_ABI_VERSION */
  const char *torch_version;        /**< TORCH_VERSION */
  const char *compiler;             /**< __VERSION__; for people */
  const char *build_tag;            /**< flags that change layouts (sanitizers, _GLIBCXX_DEBUG) */
  const char *name;                 /**< "slim-awq" */
  const char *version;              /**< of the plugin */
  const char *vendor;               /**< who made it */
  const char *license;              /**< SPDX identifier */
  uint32_t n_components;            /**< at least 1 */
  const slim_component *components; /**< n_components of them, each component's struct_size apart */
} slim_plugin;

#ifdef __cplusplus
}
#endif
#endif /* SLIM_ABI_H_ */
