#include "report/notes.h"

namespace slim {
namespace {
constexpr size_t kExamples = 3;
}

void RunNotes::note(std::string_view kind, std::string_view where, std::string_view detail) {
  Kind& entry = kinds_[std::string(kind)];
  if (++entry.count <= static_cast<int64_t>(kExamples)) {
    entry.examples.push_back(std::string(where) + (detail.empty() ? "" : ": ") + std::string(detail));
  }
}

void RunNotes::metric(std::string_view where, std::string_view key, double value) {
  metrics_[std::string(where)][std::string(key)] = value;
}

std::string RunNotes::text() const {
  std::string text;
  for (const auto& [name, kind] : kinds_) {
    text += name + " (" + std::to_string(kind.count) + "): ";
    for (size_t i = 0; i < kind.examples.size(); ++i) text += (i ? "; " : "") + kind.examples[i];
    text += kind.count > static_cast<int64_t>(kExamples) ? "; ...\n" : "\n";
  }
  return text;
}

}  // namespace slim
