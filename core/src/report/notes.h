#pragma once
#include <map>
#include <string>
#include <vector>

#include "slim/algorithm.hpp"

namespace slim {

/// Collects what algorithms tell, for the report at the end.
class SLIM_API RunNotes final : public Notes {
 public:
  struct Kind {
    int64_t count = 0;
    std::vector<std::string> examples;  ///< the first few, "where: detail"
  };
  void note(std::string_view kind, std::string_view where, std::string_view detail) override;
  void metric(std::string_view where, std::string_view key, double value) override;
  /// What an interrupted run has told of a kind.
  void restore(const std::string& kind, Kind told) { kinds_[kind] = std::move(told); }
  const std::map<std::string, Kind>& kinds() const { return kinds_; }
  /// [layer or edge][key]
  const std::map<std::string, std::map<std::string, double>>& metrics() const { return metrics_; }
  /// One line a kind, for people; empty when there is nothing to tell.
  std::string text() const;

 private:
  std::map<std::string, Kind> kinds_;
  std::map<std::string, std::map<std::string, double>> metrics_;
};

}  // namespace slim
