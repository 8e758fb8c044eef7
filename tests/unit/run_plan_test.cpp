#include "plan/run_plan.h"

#include <ATen/ATen.h>
#include <doctest/doctest.h>

using namespace slim;

namespace {

void check_message(const Status& status, Code code, const std::string& part) {
  CAPTURE(status.message());
  CHECK(status.code() == code);
  CHECK(status.message().find(part) != std::string::npos);
}

/// Holds any layer in one tensor of its shape.
class AnyFormat final : public Format {
 public:
  c10::ScalarType scale_dtype(const Scheme&, c10::ScalarType dtype) const override { return dtype; }
  Result<std::vector<TensorSpec>> layout(const Layer& layer, const Scheme&, c10::ScalarType) const override {
    return std::vector<TensorSpec>{{layer.name + ".codes", Dtype::kI8, {layer.out, layer.in}}};
  }
  Result<TensorMap> encode(const Layer&, const Scheme&, const Solved&, c10::ScalarType) const override {
    return TensorMap{};
  }
  Result<std::string> quantization_config(const OutputModel&) const override { return std::string("{}"); }
  bool recognises(std::string_view, const std::vector<std::string>&) const override { return false; }
  Result<std::vector<StoredLayer>> stored_layers(const TensorReader&, std::string_view) const override {
    return std::vector<StoredLayer>{};
  }
  Result<Solved> decode(const StoredLayer&, const TensorReader&) const override { return Solved{}; }
};

/// A vision block and a language block, of layers [out, in] that are named by their places, beside an embedding.
struct SmallModel {
  SmallModel() {
    plan.globals = {"embedding"};
    add_tensor("embedding", {64, 128});
    plan.default_ignore = {"re:.*tower.*"};
    BlockPlan& vision = add_block("tower.0", "vision");
    add_layer(vision, "tower.0.up", 96, 128);
    BlockPlan& language = add_block("layers.0", "language");
    add_layer(language, "layers.0.q", 128, 128);
    add_layer(language, "layers.0.k", 64, 128);
    add_layer(language, "layers.0.down", 128, 192);
    language.fused = {{"qk", {0, 1}}};
  }
  BlockPlan& add_block(const std::string& name, const std::string& stage) {
    BlockPlan block;
    block.index = static_cast<int32_t>(plan.blocks.size());
    block.name = name;
    block.stage = stage;
    plan.blocks.push_back(block);
    return plan.blocks.back();
  }
  void add_layer(BlockPlan& block, const std::string& name, int64_t out, int64_t in) {
    Layer layer;
    layer.id = static_cast<LayerId>(block.layers.size());
    layer.name = name;
    layer.weight.tensor = name + ".weight";
    layer.out = out;
    layer.in = in;
    layer.input = static_cast<PortId>(block.ports.size());
    block.ports.push_back({layer.input, name + " input", in});
    block.layers.push_back(layer);
    add_tensor(layer.weight.tensor, {out, in});
  }
  void add_tensor(const std::string& name, std::vector<int64_t> shape) {
    tensors[name] = {name, Dtype::kBF16, std::move(shape)};
  }
  ModelFacts facts() const { return {plan, tensors, dtype, "small", declared}; }

  ModelPlan plan;
  std::map<std::string, TensorSpec> tensors;
  at::ScalarType dtype = at::kBFloat16;
  std::optional<at::ScalarType> declared;
};

Recipe recipe_of(const char* scheme) {
  Recipe recipe;
  recipe.scheme = *scheme_from_name(scheme);
  recipe.parts.push_back({{"any"}, {}, recipe.scheme});
  recipe.format_id = "any";
  recipe.format = Owned<Format>(new AnyFormat, [](Format* format) { delete format; });
  return recipe;
}

void add_rule(Recipe& recipe, const std::string& pattern, int part) {
  RecipeRule rule{{{pattern}, part == RecipeRule::kFloat ? "none" : "", {}, 0}, {}, part};
  rule.patterns = *parse_patterns({pattern});
  recipe.rules.push_back(std::move(rule));
}

}  // namespace

TEST_CASE("run plan/ layers are quantized but for the adapter's own, and every tensor is written once") {
  const SmallModel model;
  const auto plan = make_run_plan({}, model.facts(), recipe_of("w8a8"));
  REQUIRE(plan.ok());
  CHECK(!plan->scheme(0, 0));
  CHECK(plan->scheme(1, 2));
  CHECK(plan->quantized_weights == 128 * 128 + 64 * 128 + 128 * 192);
  CHECK(plan->float_weights == 96 * 128);
  CHECK(plan->ignore == std::vector<std::string>{"re:.*tower.*"});
  std::vector<std::string> names;
  for (const TensorSpec& spec : plan->outputs) names.push_back(spec.name);
  CHECK(names == std::vector<std::string>{"embedding", "tower.0.up.weight", "layers.0.q.codes",
                                          "layers.0.k.codes", "layers.0.down.codes"});
}

TEST_CASE(
    "run plan/ what stays in float is cast where config.json says 16 bits of a float32 checkpoint, or as "
    "asked") {
  SmallModel model;
  const auto dtypes = [&](const std::string& asked) {
    RunConfig config;
    config.output_dtype = asked;
    const auto plan = make_run_plan(config, model.facts(), recipe_of("w8a8"));
    REQUIRE(plan.ok());
    return std::string(dtype_name(plan->outputs.front().dtype)) + " " +
           std::string(dtype_name(plan->outputs[1].dtype));  // embedding, tower.0.up.weight
  };
  model.tensors["tower.0.up.weight"].dtype = Dtype::kF32;  // on purpose, as routers are
  CHECK(dtypes("auto") == "BF16 F32");
  CHECK(dtypes("float16") == "F16 F16");
  for (auto& [name, spec] : model.tensors) spec.dtype = Dtype::kF32;
  model.dtype = at::kFloat;
  CHECK(dtypes("auto") == "F32 F32");
  model.declared = at::kBFloat16;
  CHECK(dtypes("auto") == "BF16 BF16");
  CHECK(dtypes("keep") == "F32 F32");
  model.tensors["tower.0.up.weight"].dtype = Dtype::kI64;
  CHECK(dtypes("bfloat16") == "BF16 I64");
}

TEST_CASE("run plan/ quant_vit opens the layers of the vision stage, whatever they are called") {
  SmallModel model;
  RunConfig config;
  config.quant_vit = true;
  const auto plan = make_run_plan(config, model.facts(), recipe_of("w8a8"));
  REQUIRE(plan.ok());
  CHECK(plan->scheme(0, 0));
  CHECK(plan->ignore.empty());
  model.plan.blocks[0].stage = "language";
  check_message(make_run_plan(config, model.facts(), recipe_of("w8a8")).status(), Code::kInvalidArgument,
                "no vision tower");
}

TEST_CASE("run plan/ patterns and rules that decide nothing are named") {
  const SmallModel model;
  RunConfig config;
  config.ignore_layers = {"layers.7.*"};
  check_message(make_run_plan(config, model.facts(), recipe_of("w8a8")).status(), Code::kInvalidArgument,
                "layers.7.*");
  Recipe recipe = recipe_of("w8a8");
  add_rule(recipe, "tower*", 0);
  check_message(make_run_plan({}, model.facts(), recipe).status(), Code::kInvalidArgument, "stays in float");
  recipe = recipe_of("w8a8");
  add_rule(recipe, "layers*", RecipeRule::kFloat);
  add_rule(recipe, "*down", 0);
  check_message(make_run_plan({}, model.facts(), recipe).status(), Code::kInvalidArgument, "earlier rules");
}

TEST_CASE("run plan/ names of what stays in float anyway may be ignored, others may not") {
  const SmallModel model;
  RunConfig config;
  config.ignore_layers = {"embedding"};
  CHECK(make_run_plan(config, model.facts(), recipe_of("w8a8")).ok());
  for (const char* wrong : {"embeding", "layers.0.q.weight"}) {
    config.ignore_layers = {wrong};
    check_message(make_run_plan(config, model.facts(), recipe_of("w8a8")).status(), Code::kInvalidArgument,
                  "matches no layer");
  }
}

TEST_CASE("run plan/ the experts of a block need one scheme") {
  SmallModel model;
  BlockPlan& block = model.plan.blocks.back();
  for (const char* name : {"experts.0.up", "experts.1.up"}) {
    model.add_layer(block, name, 128, 128);
    block.layers.back().expert = name[8] - '0';
  }
  CHECK(make_run_plan({}, model.facts(), recipe_of("w8a8")).ok());
  Recipe recipe = recipe_of("w8a8");
  add_rule(recipe, "experts.1.*", RecipeRule::kFloat);
  check_message(make_run_plan({}, model.facts(), recipe).status(), Code::kInvalidArgument,
                "experts.1.up and experts.0.up");
}

TEST_CASE("run plan/ layers that engines merge need one scheme") {
  const SmallModel model;
  RunConfig config;
  config.ignore_layers = {"layers.0.k"};
  check_message(make_run_plan(config, model.facts(), recipe_of("w8a8")).status(), Code::kInvalidArgument,
                "layers.0.k and layers.0.q");
  config.ignore_layers = {"layers.0.k", "layers.0.q"};
  CHECK(make_run_plan(config, model.facts(), recipe_of("w8a8")).ok());
}

TEST_CASE(
    "run plan/ a group that nobody asked for divides every layer; one that was asked for is kept or "
    "refused") {
  const SmallModel model;  // widths 128 and 192
  const auto plan = make_run_plan({}, model.facts(), recipe_of("w4a16"));
  REQUIRE(plan.ok());
  CHECK(plan->common_group == 64);
  CHECK(plan->scheme(1, 0)->weight->group_size == 64);
  CHECK(plan->indivisible.empty());

  RunConfig asked;
  asked.group_size = 128;
  check_message(make_run_plan(asked, model.facts(), recipe_of("w4a16")).status(), Code::kInvalidArgument,
                "--group-size 64");
  asked.indivisible = "skip";
  const auto skipped = make_run_plan(asked, model.facts(), recipe_of("w4a16"));
  REQUIRE(skipped.ok());
  CHECK(!skipped->scheme(1, 2));
  CHECK(group_size_text(asked, *skipped) ==
        "1 layer of 192 channels, which groups of 128 do not divide: stay in float\n");
  asked.indivisible = "channel";
  const auto rows = make_run_plan(asked, model.facts(), recipe_of("w4a16"));
  REQUIRE(rows.ok());
  CHECK(rows->scheme(1, 2)->weight->granularity == Granularity::kChannel);
}

TEST_CASE("run plan/ a width that no usual group divides stays in float, without taking the others' group") {
  SmallModel model;
  model.add_layer(model.plan.blocks[1], "layers.0.odd", 16, 100);
  const auto plan = make_run_plan({}, model.facts(), recipe_of("w4a16"));
  REQUIRE(plan.ok());
  CHECK(plan->common_group == 64);
  CHECK(!plan->scheme(1, 3));
  CHECK(plan->indivisible.size() == 1);
}

TEST_CASE("run plan/ nothing to quantize is an error") {
  const SmallModel model;
  RunConfig config;
  config.ignore_layers = {"layers*"};
  check_message(make_run_plan(config, model.facts(), recipe_of("w8a8")).status(), Code::kInvalidArgument,
                "nothing to quantize");
}
