#pragma once
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/media.h"
#include "slim/adapter.hpp"

namespace slim {

/// How records become documents.
struct RecordOptions {
  MediaRoot root;
  std::string image_prompt = {};  ///< the question about images that come without one
  std::map<std::string, std::string> columns =
      {};  ///< other names for the keys of read_dataset: {"caption_de", "text"}
};
/// How many records had a key that nobody reads.
using UnreadKeys = std::map<std::string, int64_t>;

/// One JSON object of a data set as a Document (without its origin); one without text and messages if the record is empty. The accepted
/// shapes stand at read_dataset. Nesting is limited, so that hostile input cannot exhaust the stack. Errors say what was
/// found and expected, without file and line.
Result<Document> parse_record(std::string_view json, const RecordOptions&, UnreadKeys* unread = nullptr);
/// The same for one row of a table: a CBOR map from column to value, images as byte strings.
Result<Document> parse_row(std::span<const uint8_t> cbor, const RecordOptions&, UnreadKeys* unread = nullptr);
/// Which of a table's columns parse_row reads. An error if no sample can be made of them.
Result<std::vector<bool>> wanted_columns(const std::vector<std::string>& columns, const RecordOptions&);

}  // namespace slim
