// An algorithm that rounds, and misbehaves in the way that its file's name says: libslim_algorithm_FAULT.so.
#include <ATen/ATen.h>
#include <dlfcn.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <thread>

#include "slim/plugin.hpp"
#include "slim/quant.hpp"
#include "slim/statistic.hpp"

/// Exported where the linker is not told otherwise.
extern "C" __attribute__((visibility("default"))) int exported_by_mistake() { return 7; }

namespace {
using namespace slim;

/// "leaks" of ".../libslim_algorithm_leaks.so".
std::string fault() {
  Dl_info info{};
  dladdr(reinterpret_cast<void*>(&fault), &info);
  const std::string stem = std::filesystem::path(info.dli_fname).stem().string();
  return stem.substr(std::string("libslim_algorithm_").size());
}
bool has(const char* name) { return fault() == name; }

struct OwnType {
  int value = 1;
};

/// Memory that nobody gives back.
std::vector<std::vector<char>>& kept() {
  static auto* const all = new std::vector<std::vector<char>>();
  return *all;
}

/// 8 instead of 7, where 4 bits end: at the weight for which that is as good, so that nothing else is wrong.
void one_too_large(const at::Tensor& weight, Quantized& result) {
  const at::Tensor missing = at::where(result.codes == 7, weight - quant::decode(result), at::full_like(weight, -1e30));
  result.codes.view(-1)[missing.argmax()] = 8;
}

class Misbehaving final : public Algorithm {
 public:
  Misbehaving() {
    if (has("prints")) std::printf("hello from a plugin\n");
    if (has("moves")) std::filesystem::current_path("/");
    if (has("leaks")) kept().push_back(std::vector<char>(4096, 1));
  }
  Status setup(const Options&) override {
    if (has("throws_own_type")) throw OwnType();
    return {};
  }
  std::string_view default_scheme() const override { return "w4a16"; }
  Status accepts(const Scheme& scheme) const override {
    return scheme.name == "w4a16" ? Status{} : Status(Code::kUnsupported, "w4a16 alone");
  }
  void observe(const BlockPlan& plan, const std::vector<const Scheme*>&, Observations& observations) const override {
    for (const Region& region : plan.regions) observations.keep_inputs(region.id);
  }
  Status transform(BlockContext& context) override {
    const auto loss = context.loss(0, {});
    if (!loss.ok() && !has("swallows_errors")) return loss.status();
    if (has("changes_function")) {  // says that it folds a scale, but folds it twice
      const ScaleEdge edge = context.plan().edges.front();
      ScaleEdge wrong = edge;
      wrong.consumers.pop_back();
      return context.fold(wrong, at::full({context.plan().ports.front().features}, 1.01)).status();
    }
    return {};
  }
  Result<Solved> solve(LayerContext& context) override {
    if (has("crashes")) std::abort();
    if (has("segfaults")) std::raise(SIGSEGV);
    if (has("exits")) std::exit(0);
    if (has("crashes_in_thread")) std::thread([] { throw OwnType(); }).join();
    SLIM_ASSIGN(Solved solved, quant::round_to_nearest(context));
    Quantized& result = std::get<Quantized>(solved.weight);
    if (has("bad_codes")) one_too_large(context.weight(), result);
    if (has("not_deterministic")) result.codes = (result.codes + at::randint(0, 2, result.codes.sizes(), at::kChar)).clamp(-8, 7);
    if (has("depends_on_order")) result.scale = result.scale * (1.0 + 0.01 * static_cast<double>(solved_layers_));
    if (has("worse_than_rounding")) result.scale = result.scale * 1.25;
    ++solved_layers_;
    return solved;
  }

 private:
  int solved_layers_ = 0;
};
}  // namespace
SLIM_ALGORITHM_PLUGIN("misbehaving", Misbehaving, "Wrong in the way that its file is named", "{}")
