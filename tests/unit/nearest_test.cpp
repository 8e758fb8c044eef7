#include "util/nearest.h"

#include <doctest/doctest.h>

using namespace slim;

TEST_CASE("nearest/ a slip of one letter finds the word: left out, doubled, changed, swapped") {
  const std::vector<std::string> words = {"gptq", "awq", "group_size", "batch_size"};
  CHECK(nearest("gpt", words) == "gptq");
  CHECK(nearest("aawq", words) == "awq");
  CHECK(nearest("gotq", words) == "gptq");
  CHECK(nearest("aqw", words) == "awq");
  CHECK(nearest("group-size", words) == "group_size");
  CHECK(nearest("Group_Sise", words) == "group_size");
}

TEST_CASE("nearest/ a swap costs one change, not two") {
  CHECK(nearest("ab", {"ba"}) == "ba");  // two substitutions would be more than half of the letters
  CHECK(nearest("ab", {"cd"}).empty());
}

TEST_CASE("nearest/ nothing is suggested for a word that resembles none") {
  CHECK(nearest("banana", {"gptq", "awq"}).empty());
  CHECK(nearest("", {"a"}).empty());
  CHECK(nearest("awq", {}).empty());
  CHECK(nearest(std::string(100000, 'a'), {std::string(100000, 'a')}).empty());
  CHECK(did_you_mean("banana", {"gptq"}).empty());
}

TEST_CASE("nearest/ the first of equally near words wins, and an exact one over all") {
  CHECK(nearest("w5a16", {"w4a16", "w8a16"}) == "w4a16");
  CHECK(nearest("w8a16", {"w4a16", "w8a16"}) == "w8a16");
}
