#pragma once
#include <functional>
#include <string>
#include <vector>

#include "engines/engine.h"

/// What the rules of all engines are made of.
namespace slim::engines {

/// What is wrong, each thing once: with the first layer that it is true of, and the count of the others.
class ProblemList {
 public:
  /// `engine`: as lines name it.
  explicit ProblemList(std::string engine) : engine_(std::move(engine)) {}
  /// `what` continues "LAYER: vLLM 0.32 ".
  void add(const std::string& layer, const std::string& what);
  /// Of the checkpoint as a whole.
  void add(const std::string& what) { add("", what); }
  std::vector<std::string> lines() const;

 private:
  struct Problem {
    std::string what, first;
    int64_t layers = 1;
  };
  std::string engine_;
  std::vector<Problem> problems_;
};

/// Calls a function with every quantized layer and its scheme.
void for_quantized(const ServedCheckpoint&,
                   const std::function<void(const BlockPlan&, const Layer&, const Scheme&)>&);
/// Adds layers of groups that the adapter names as merged (q, k and v; gate and up), and have different schemes.
void check_fused_groups(const ServedCheckpoint&, ProblemList&);
/// Adds experts' layers whose scheme is not that of the block's first expert.
void check_experts(const ServedCheckpoint&, ProblemList&);

/// Each engine's rules.
void check_vllm(const ServedCheckpoint&, int64_t devices, ProblemList&);
void check_transformers(const ServedCheckpoint&, int64_t devices, ProblemList&);
void check_lmdeploy(const ServedCheckpoint&, int64_t devices, ProblemList&);
void check_vllm_ascend(const ServedCheckpoint&, int64_t devices, ProblemList&);

}  // namespace slim::engines
