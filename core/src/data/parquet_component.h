#pragma once
#include <stddef.h>
#include <stdint.h>

/// What libslim_core and the optional component libslim_parquet.so say to each other: C, so that either may be built
/// with another compiler. The component alone links Arrow, and is loaded when the first parquet file is read.

#ifdef __cplusplus
extern "C" {
#endif

/// One file to be read, and where its contents go. Owned by the caller; called back from the calling thread.
typedef struct slim_parquet_reading {
  const char* path;
  void* context;
  /// Once: the names of the file's columns. Sets wanted[i] for those to be read; nonzero stops the reading.
  int (*columns)(void* context, const char* const* names, size_t count, uint8_t* wanted);
  /// Every row in order: a CBOR map from column to value, binary values as byte strings, columns not wanted null.
  /// Nonzero stops the reading.
  int (*row)(void* context, const uint8_t* cbor, size_t size);
  char* error;  ///< [error_size]: gets what went wrong, zero-terminated
  size_t error_size;
} slim_parquet_reading;

#define SLIM_PARQUET_READ "slim_parquet_read_v1"
/// 0: all rows were given, or a callback stopped the reading; else `error` says why not.
typedef int (*slim_parquet_read_function)(const slim_parquet_reading*);

#ifdef __cplusplus
}
#endif
