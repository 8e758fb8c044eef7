#pragma once
#include <string>

#include <nlohmann/json.hpp>

#include "plan/run_plan.h"

/// What the reports of `slim plan` and of a run share.
namespace slim {

/// Layers whose width the group does not divide, one text each.
inline nlohmann::ordered_json indivisible_json(const RunPlan& plan) {
  auto list = nlohmann::ordered_json::array();
  for (const IndivisibleLayer& layer : plan.indivisible) {
    list.push_back(layer.name + " has " + std::to_string(layer.in) + " input channels, which groups of " +
                   std::to_string(layer.group_size) + " do not divide");
  }
  return list;
}

/// Every line of the text behind a title.
inline std::string led_by(const std::string& title, const std::string& text) {
  std::string lines;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    lines += title + text.substr(begin, end - begin) + "\n";
    begin = end + 1;
  }
  return lines;
}

}  // namespace slim
