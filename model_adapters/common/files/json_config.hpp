#pragma once
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "slim/status.hpp"

namespace slim::model {

/// A JSON object read key by key. Reading never fails on the spot: the first error (a key missing, of another
/// type, or out of range) is kept, shared by all children, and told by status(), so that a reader of thirty
/// keys checks once. A key that is null counts as missing. Cheap to copy; used from one thread.
class JsonConfig {
 public:
  /// `where` leads every message ("config.json"). Errors: kCorrupt if the text is no JSON object.
  static Result<JsonConfig> parse(std::string_view text, std::string where);

  bool has(std::string_view key) const;
  /// Whether the key is there, with null too: config.json's null can be another thing than a default.
  bool names(std::string_view key) const;
  /// The object at `key`; an empty one if it is missing.
  JsonConfig child(std::string_view key) const;

  /// Without a fallback a missing key is an error (and 0 is returned).
  int64_t integer(std::string_view key, std::optional<int64_t> fallback = {}, int64_t least = 1,
                  int64_t most = std::numeric_limits<int32_t>::max()) const;
  double number(std::string_view key, std::optional<double> fallback = {}) const;
  bool boolean(std::string_view key, std::optional<bool> fallback = {}) const;
  std::string text(std::string_view key, std::optional<std::string> fallback = {}) const;
  /// A token of tokenizer_config.json: a string, or an object with "content".
  std::string token(std::string_view key, const std::string& fallback) const;
  /// A list of integers, or a single one.
  std::vector<int64_t> integers(std::string_view key,
                                std::optional<std::vector<int64_t>> fallback = {}) const;
  /// A list of numbers, or a single one.
  std::vector<double> numbers(std::string_view key, std::optional<std::vector<double>> fallback = {}) const;

  /// A list of strings.
  std::vector<std::string> texts(std::string_view key,
                                 std::optional<std::vector<std::string>> fallback = {}) const;

  /// Keeps an error found by the caller, about `key`; returned by status() unless an earlier one is there.
  void fail(std::string_view key, std::string_view what) const;
  Status status() const;

 private:
  struct Node;
  explicit JsonConfig(std::shared_ptr<const Node> node) : node_(std::move(node)) {}
  std::shared_ptr<const Node> node_;
};

}  // namespace slim::model
