#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/media.h"
#include "slim/adapter.hpp"

namespace slim {

/// One JSON object of a data set as a Document (without its origin). The accepted shapes stand at
/// read_dataset. Nesting is limited, so that hostile input cannot exhaust the stack. Errors say what was
/// found and expected, without file and line.
Result<Document> parse_record(std::string_view json, const MediaRoot&);
/// The same for one row of a table: a CBOR map from column to value, images as byte strings.
Result<Document> parse_row(std::span<const uint8_t> cbor, const MediaRoot&);
/// Which of a table's columns parse_row reads. An error if no sample can be made of them.
Result<std::vector<bool>> wanted_columns(const std::vector<std::string>& columns);

}  // namespace slim
