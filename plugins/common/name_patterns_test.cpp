#include "common/name_patterns.hpp"

#include <doctest/doctest.h>

#include <algorithm>

using namespace slim::formats;

namespace {

bool covered(const std::vector<std::string>& patterns, const std::string& name) {
  return std::any_of(patterns.begin(), patterns.end(),
                     [&](const std::string& p) { return matches_start(p, name); });
}

}  // namespace

TEST_CASE("name_patterns/ one pattern covers a layer of every block, whatever the prefix") {
  std::vector<std::string> down, up;
  for (int i = 0; i < 30; ++i) {
    down.push_back("model.layers." + std::to_string(i) + ".mlp.down_proj");
    up.push_back("model.layers." + std::to_string(i) + ".mlp.up_proj");
  }
  const auto patterns = patterns_of(down, up);
  CHECK(patterns.size() == 1);
  CHECK(covered(patterns, "language_model.model.layers.7.mlp.down_proj"));
  CHECK(!covered(patterns, "model.layers.7.mlp.down_proj_2"));
}

TEST_CASE("name_patterns/ every split of names into two is told apart") {
  const std::vector<std::string> names = {
      "model.layers.1.mlp.up_proj",   "model.layers.11.mlp.up_proj",         "model.layers.1.mlp.gate",
      "model.layers.1.mlp.gate_proj", "visual.blocks.1.mlp.up_proj",         "lm_head",
      "visual.layers.1.mlp.up_proj",  "model.layers.1.mlp.experts.3.up_proj"};
  for (size_t split = 0; split < (size_t{1} << names.size()); ++split) {
    std::vector<std::string> ours, others;
    for (size_t i = 0; i < names.size(); ++i) (split >> i & 1 ? ours : others).push_back(names[i]);
    const auto patterns = patterns_of(ours, others);
    for (const std::string& name : ours) CHECK(covered(patterns, name));
    for (const std::string& name : others) CHECK(!covered(patterns, name));
  }
}
