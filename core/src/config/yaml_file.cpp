#include "config/yaml_file.h"

#include <yaml-cpp/yaml.h>

#include <charconv>

namespace slim {
namespace {

/// Builds the TOML of a YAML document.
class Translation {
 public:
  Translation(const std::string& path, ConfigDocument& document) : path_(path), document_(document) {}

  Status mapping(const YAML::Node& node, toml::table& table, int depth) {
    for (const auto& entry : node) {
      if (!entry.first.IsScalar()) return at(entry.first, "expected a key");
      SLIM_TRY(count(entry.second, depth));
      const std::string key = entry.first.Scalar();
      if (entry.second.IsNull()) continue;
      if (table.contains(key)) return at(entry.first, "'" + key + "' stands twice");
      SLIM_TRY(put(entry.second, depth, [&](auto&& value) -> toml::node& {
        return table.insert(key, std::forward<decltype(value)>(value)).first->second;
      }));
    }
    return {};
  }

 private:
  static constexpr int kDeepest = 32;
  static constexpr int64_t kMostNodes = 100'000;

  Status at(const YAML::Node& node, const std::string& what) const {
    return {Code::kInvalidArgument, path_ + ":" + std::to_string(node.Mark().line + 1) + ": " + what};
  }
  Status count(const YAML::Node& node, int depth) {
    if (depth > kDeepest) return at(node, "nested deeper than " + std::to_string(kDeepest) + " levels");
    return ++nodes_ > kMostNodes ? at(node, "too many values for a configuration") : Status{};
  }

  /// `insert` takes a value into its table or list, and gives back its place there.
  template <class Insert>
  Status put(const YAML::Node& node, int depth, const Insert& insert) {
    const auto placed = [&](toml::node& place) -> toml::node& {
      document_.lines[&place] = node.Mark().line + 1;
      return place;
    };
    if (node.IsMap()) return mapping(node, *placed(insert(toml::table{})).as_table(), depth + 1);
    if (node.IsSequence()) return sequence(node, *placed(insert(toml::array{})).as_array(), depth + 1);
    scalar(node, [&](auto&& value) { placed(insert(std::forward<decltype(value)>(value))); });
    return {};
  }

  Status sequence(const YAML::Node& node, toml::array& array, int depth) {
    for (const YAML::Node& item : node) {
      SLIM_TRY(count(item, depth));
      if (item.IsNull()) return at(item, "a list with an empty value");
      SLIM_TRY(put(item, depth, [&](auto&& value) -> toml::node& {
        array.push_back(std::forward<decltype(value)>(value));
        return array.back();
      }));
    }
    return {};
  }

  /// Quoted values are texts; of plain ones true, false and numbers are what they say.
  template <class Use>
  static void scalar(const YAML::Node& node, const Use& use) {
    const std::string& text = node.Scalar();
    const bool quoted = node.Tag() == "!";
    int64_t integer = 0;
    double number = 0;
    const auto whole = [&](auto& value) {
      const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
      return error == std::errc{} && stop == text.data() + text.size();
    };
    if (quoted)
      use(text);
    else if (text == "true" || text == "True" || text == "false" || text == "False")
      use(text == "true" || text == "True");
    else if (whole(integer))
      use(integer);
    else if (whole(number))
      use(number);
    else
      use(text);
  }

  const std::string& path_;
  ConfigDocument& document_;
  int64_t nodes_ = 0;
};

}  // namespace

bool is_yaml(const std::string& path) { return path.ends_with(".yaml") || path.ends_with(".yml"); }

Result<ConfigDocument> parse_yaml(const std::string& text, const std::string& path) try {
  const YAML::Node root = YAML::Load(text);
  ConfigDocument document;
  if (root.IsNull()) return document;
  if (!root.IsMap()) return Status(Code::kInvalidArgument, path + ": expected sections with keys");
  SLIM_TRY(Translation(path, document).mapping(root, document.table, 0));
  return document;
} catch (const YAML::Exception& error) {
  return Status(Code::kInvalidArgument,
                path + ":" + std::to_string(error.mark.line + 1) + ": no valid YAML: " + error.msg);
}

}  // namespace slim
