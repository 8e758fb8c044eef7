#pragma once
#define SLIM_VERSION "0.1.0"

/// What must be equal for C++ objects to cross the plugin boundary beyond compiler and LibTorch: flags that change layouts.
#if defined(__SANITIZE_ADDRESS__)
#define SLIM_BUILD_TAG_SANITIZER_ "-asan"
#elif defined(__SANITIZE_THREAD__)
#define SLIM_BUILD_TAG_SANITIZER_ "-tsan"
#else
#define SLIM_BUILD_TAG_SANITIZER_ ""
#endif
#ifdef _GLIBCXX_DEBUG
#define SLIM_BUILD_TAG_DEBUG_ "-glibcxxdebug"
#else
#define SLIM_BUILD_TAG_DEBUG_ ""
#endif
#define SLIM_BUILD_TAG "slim-0.1" SLIM_BUILD_TAG_SANITIZER_ SLIM_BUILD_TAG_DEBUG_
