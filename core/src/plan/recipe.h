#pragma once
#include <string>
#include <vector>

#include "config/run_config.h"
#include "plugin/registry.h"
#include "slim/algorithm.hpp"
#include "slim/format.hpp"
#include "util/name_match.h"

namespace slim {

/// A chain of algorithms, set up, and the scheme of the layers that it serves. Each part has objects of its own.
struct RecipePart {
  std::vector<std::string> algorithm_ids;
  std::vector<Owned<Algorithm>> algorithms;
  Scheme scheme;

  /// The algorithm whose solve() is asked: the last of the chain that solves; null: plain rounding.
  Algorithm* solver() const;
  std::string solver_id() const;
};

/// Which part serves the layers that a rule matches.
struct RecipeRule {
  static constexpr int kFloat = -1;
  LayerRule rule;
  std::vector<NamePattern> patterns;
  int part = kFloat;

  bool matches(const std::string& layer) const;
};

/// How one checkpoint is made: algorithms and schemes by layer, and the format that stores them.
class SLIM_API Recipe {
 public:
  /// kInvalidArgument: an unknown plugin, scheme or option; names it and the rule.
  static Result<Recipe> make(const RunConfig&, PluginRegistry&);

  std::vector<RecipePart> parts;           ///< the first serves every layer that no rule matches
  std::vector<RecipeRule> rules;           ///< the first that matches a layer decides
  Scheme scheme;                           ///< of the first part
  std::vector<std::string> algorithm_ids;  ///< of all parts
  std::string format_id;
  Owned<Format> format;

  /// The part that serves a layer: its rule's, or the first; RecipeRule::kFloat: none. `rule`: its index, or -1.
  int part_of(const std::string& layer, int& rule) const;
  /// The tensors that a layer of this part becomes. kUnsupported: the format cannot hold them.
  Result<std::vector<TensorSpec>> layout(const Layer&, const Scheme&, const RecipePart&,
                                         at::ScalarType model_dtype) const;
  /// The formats that can hold it, for messages: ids.
  std::vector<std::string> formats_that_hold(const Layer&, const Scheme&, const RecipePart&,
                                             at::ScalarType model_dtype) const;

 private:
  Result<int> find_part(const std::vector<std::string>& plugins, const Scheme&, const RunConfig&,
                        PluginRegistry&);
  Status add_rule(const LayerRule&, const RunConfig&, PluginRegistry&);

  PluginRegistry* registry_ = nullptr;  ///< outlives the recipe
};

}  // namespace slim
