#include "plan/recipe.h"

#include <algorithm>

#include "plugin/guard.h"

namespace slim {
namespace {

/// The scheme of a name; -1 for a scheme that has whole rows anyway is no contradiction.
Result<Scheme> scheme_of(const std::string& name, int64_t group_size) {
  SLIM_ASSIGN(const Scheme plain, scheme_from_name(name));
  const bool whole_rows =
      plain.weight && plain.weight->granularity == Granularity::kChannel && group_size == -1;
  return scheme_from_name(name, whole_rows ? 0 : group_size);
}

Result<RecipePart> make_part(const std::vector<std::string>& plugins, const RunConfig& config,
                             PluginRegistry& registry) {
  RecipePart part;
  for (const std::string& name : plugins) {
    SLIM_ASSIGN(const PluginInfo info, registry.find(SLIM_ALGORITHM, name));
    SLIM_ASSIGN(Owned<Algorithm> algorithm, registry.algorithm(name));
    const auto raw = config.plugin_options.find(info.id);
    SLIM_ASSIGN(const Options options,
                registry.checked_options(SLIM_ALGORITHM, name,
                                         raw == config.plugin_options.end() ? Options{} : raw->second));
    SLIM_TRY(guarded(info.id, [&] { return algorithm->setup(options); }));
    part.algorithm_ids.push_back(info.id);
    part.algorithms.push_back(std::move(algorithm));
  }
  return part;
}

Status set_scheme(RecipePart& part, const Scheme& scheme) {
  for (size_t i = 0; i < part.algorithms.size(); ++i) {
    SLIM_TRY(part.algorithms[i]->accepts(scheme).in(part.algorithm_ids[i]));
  }
  part.scheme = scheme;
  return {};
}

std::string default_scheme(const RecipePart& part) {
  const Algorithm* solver = part.solver();
  return std::string((solver ? *solver : *part.algorithms.back()).default_scheme());
}

/// Every id once, in order.
void add_ids(const RecipePart& part, std::vector<std::string>& ids) {
  for (const std::string& id : part.algorithm_ids) {
    if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
  }
}

Result<std::vector<TensorSpec>> layout_of(const std::string& format_id, const Format& format,
                                          const Layer& layer, const Scheme& scheme, const RecipePart& part,
                                          at::ScalarType model_dtype) {
  const Algorithm* solver = part.solver();
  SLIM_ASSIGN(const bool scattered, guarded(part.solver_id(), [&] {
                return Result<bool>(solver && solver->scatters_groups(scheme));
              }));
  return guarded(format_id, [&]() -> Result<std::vector<TensorSpec>> {
    if (!scattered || format.holds_scattered_groups()) return format.layout(layer, scheme, model_dtype);
    return Status(Code::kUnsupported,
                  layer.name + ": has no index of groups, and " + part.solver_id() +
                      " as it is set up gathers channels that are not neighbours into one group");
  });
}

}  // namespace

Algorithm* RecipePart::solver() const {
  for (auto it = algorithms.rbegin(); it != algorithms.rend(); ++it) {
    if ((*it)->solves()) return it->get();
  }
  return nullptr;
}

std::string RecipePart::solver_id() const {
  for (size_t i = algorithms.size(); i-- > 0;) {
    if (algorithms[i]->solves()) return algorithm_ids[i];
  }
  return "rtn";
}

bool RecipeRule::matches(const std::string& layer) const {
  return std::any_of(patterns.begin(), patterns.end(),
                     [&](const NamePattern& pattern) { return pattern.matches(layer); });
}

int Recipe::part_of(const std::string& layer, int& rule) const {
  for (size_t i = 0; i < rules.size(); ++i) {
    if (!rules[i].matches(layer)) continue;
    rule = static_cast<int>(i);
    return rules[i].part;
  }
  rule = -1;
  return 0;
}

Result<Recipe> Recipe::make(const RunConfig& config, PluginRegistry& registry) {
  Recipe recipe;
  if (config.plugins.empty()) {
    return Status(Code::kInvalidArgument, "no algorithm chosen; pass --plugin (see `slim plugins list`)");
  }
  SLIM_ASSIGN(RecipePart first, make_part(config.plugins, config, registry));
  SLIM_ASSIGN(recipe.scheme,
              scheme_of(config.scheme.empty() ? default_scheme(first) : config.scheme, config.group_size));
  SLIM_TRY(set_scheme(first, recipe.scheme));
  recipe.parts.push_back(std::move(first));
  for (const LayerRule& rule : config.rules)
    SLIM_TRY(recipe.add_rule(rule, config, registry).in("rule '" + rule.text() + "'"));
  for (const RecipePart& part : recipe.parts) add_ids(part, recipe.algorithm_ids);
  recipe.format_id = config.format;
  if (config.format.empty()) {
    SLIM_ASSIGN(const PluginInfo format, registry.format_for(recipe.scheme.name));
    recipe.format_id = format.id;
  }
  SLIM_ASSIGN(recipe.format, registry.format(recipe.format_id));
  recipe.registry_ = &registry;
  return recipe;
}

Result<std::vector<TensorSpec>> Recipe::layout(const Layer& layer, const Scheme& scheme,
                                               const RecipePart& part, at::ScalarType model_dtype) const {
  return layout_of(format_id, *format, layer, scheme, part, model_dtype);
}

std::vector<std::string> Recipe::formats_that_hold(const Layer& layer, const Scheme& scheme,
                                                   const RecipePart& part, at::ScalarType model_dtype) const {
  std::vector<std::string> ids;
  for (const PluginInfo& info : registry_->list()) {
    if (info.kind != SLIM_FORMAT || !info.compatible.ok() || !info.shadowed_by.empty()) continue;
    const auto other = registry_->format(info.path);
    if (other.ok() && layout_of(info.id, **other, layer, scheme, part, model_dtype).ok())
      ids.push_back(info.id);
  }
  return ids;
}

Status Recipe::add_rule(const LayerRule& rule, const RunConfig& config, PluginRegistry& registry) {
  RecipeRule added{rule, {}, RecipeRule::kFloat};
  SLIM_ASSIGN(added.patterns, parse_patterns(rule.match));
  if (rule.scheme != "none") {
    const bool same_scheme = rule.scheme.empty() || rule.scheme == scheme.name;
    const int64_t group_size = rule.group_size == 0 && same_scheme ? config.group_size : rule.group_size;
    SLIM_ASSIGN(const Scheme wanted, scheme_of(same_scheme ? scheme.name : rule.scheme, group_size));
    SLIM_ASSIGN(added.part,
                find_part(rule.plugins.empty() ? config.plugins : rule.plugins, wanted, config, registry));
  }
  rules.push_back(std::move(added));
  return {};
}

/// Layers of one scheme and one chain are one part, whatever the number of rules.
Result<int> Recipe::find_part(const std::vector<std::string>& plugins, const Scheme& wanted,
                              const RunConfig& config, PluginRegistry& registry) {
  SLIM_ASSIGN(RecipePart part, make_part(plugins, config, registry));
  SLIM_TRY(set_scheme(part, wanted));
  for (size_t i = 0; i < parts.size(); ++i) {
    if (parts[i].scheme == part.scheme && parts[i].algorithm_ids == part.algorithm_ids)
      return static_cast<int>(i);
  }
  parts.push_back(std::move(part));
  return static_cast<int>(parts.size()) - 1;
}

}  // namespace slim
