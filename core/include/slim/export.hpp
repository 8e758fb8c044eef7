#pragma once
/// Marks what libslim_core exports; everything else is built with hidden visibility.
#define SLIM_API __attribute__((visibility("default")))
