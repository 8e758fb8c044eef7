#include "slim/scheme.hpp"

#include <doctest/doctest.h>

using namespace slim;

TEST_CASE("scheme/ every listed name makes a scheme of that name that quantizes or prunes something") {
  CHECK(scheme_names().size() >= 16);
  for (const std::string& name : scheme_names()) {
    const auto scheme = scheme_from_name(name);
    REQUIRE_MESSAGE(scheme.ok(), scheme.status().message());
    CHECK(scheme->name == name);
    CHECK((scheme->weight || scheme->sparsity));
    if (scheme->weight) {
      CHECK((scheme->weight->type == NumberType::kInt || scheme->weight->bits == 8));
      CHECK_FALSE(scheme->weight->dynamic);
      CHECK(scheme->weight->granularity != Granularity::kToken);
    }
  }
}

TEST_CASE("scheme/ the facts of each family") {
  const Scheme w3 = *scheme_from_name("w3a16_asym");
  CHECK(*w3.weight == QuantArgs{NumberType::kInt, 3, Granularity::kGroup, 128, 128, 128, false, false});
  CHECK_FALSE(w3.input);
  const Scheme w8a8 = *scheme_from_name("w8a8");
  CHECK(w8a8.weight->granularity == Granularity::kChannel);
  CHECK((w8a8.input->granularity == Granularity::kToken && w8a8.input->dynamic && w8a8.input->symmetric));
  const Scheme w8a8_static = *scheme_from_name("w8a8_static");
  CHECK((w8a8_static.input->granularity == Granularity::kTensor && !w8a8_static.input->dynamic &&
         !w8a8_static.input->symmetric));
  const Scheme fp8_static = *scheme_from_name("fp8_static");
  CHECK((fp8_static.weight->granularity == Granularity::kTensor &&
         fp8_static.weight->type == NumberType::kFloat));
  CHECK((fp8_static.input->granularity == Granularity::kTensor && !fp8_static.input->dynamic &&
         fp8_static.input->symmetric));
  const Scheme fp8_dynamic = *scheme_from_name("fp8_dynamic");
  CHECK((fp8_dynamic.weight->granularity == Granularity::kChannel &&
         fp8_dynamic.input->granularity == Granularity::kToken));
  const Scheme fp8_block = *scheme_from_name("fp8_block");
  CHECK((fp8_block.weight->granularity == Granularity::kBlock && fp8_block.weight->block_rows == 128));
  CHECK((fp8_block.input->granularity == Granularity::kGroup && fp8_block.input->group_size == 128 &&
         fp8_block.input->dynamic));
  CHECK_FALSE(scheme_from_name("fp8_a16")->input);
  const Scheme per_tensor = *scheme_from_name("fp8_dynamic_tensor"),
               channel = *scheme_from_name("fp8_static_channel");
  CHECK((per_tensor.weight == fp8_static.weight && per_tensor.input->granularity == Granularity::kTensor &&
         per_tensor.input->dynamic));
  CHECK((channel.weight == fp8_dynamic.weight && channel.input == fp8_static.input));
  CHECK((scheme_from_name("w8a8_static_sym")->input->symmetric &&
         !scheme_from_name("w8a8_static_sym")->input->dynamic));
  const Scheme w8a8s = *scheme_from_name("w8a8s");
  CHECK((w8a8s.weight->granularity == Granularity::kChannel && w8a8s.weight->type == NumberType::kInt &&
         w8a8s.input));
}

TEST_CASE("scheme/ case and hyphens do not matter") {
  CHECK(scheme_from_name("W4A16-ASYM")->name == "w4a16_asym");
  CHECK(scheme_from_name("FP8_DYNAMIC")->name == "fp8_dynamic");
}

TEST_CASE("scheme/ a group size applies to grouped weights alone; -1 means whole rows") {
  CHECK(scheme_from_name("w4a16", 64)->weight->group_size == 64);
  CHECK(scheme_from_name("w4a16", 0)->weight->group_size == 128);
  CHECK(scheme_from_name("w8a16", -1)->weight->granularity == Granularity::kChannel);
  CHECK(scheme_from_name("w8a8", -1).ok());
  for (const char* name : {"w8a8", "fp8_static", "fp8_block", "2:4"}) {
    const Status status = scheme_from_name(name, 64).status();
    CHECK(status.code() == Code::kInvalidArgument);
    CHECK(status.message().find(name) != std::string::npos);
  }
  CHECK_FALSE(scheme_from_name("fp8_static", -1).ok());
  CHECK_FALSE(scheme_from_name("w4a16", -2).ok());
}

TEST_CASE("scheme/ n:m sparsity is taken for any sensible n and m") {
  CHECK(scheme_from_name("2:4")->sparsity == Sparsity{2, 4});
  CHECK(scheme_from_name("4:8")->sparsity == Sparsity{4, 8});
  CHECK_FALSE(scheme_from_name("1:3")->weight);
  for (const char* name : {"4:4", "0:4", "5:4", "2:400", "2:", ":4", "2:4:8", "a:b", "-1:4"})
    CHECK_FALSE(scheme_from_name(name).ok());
}

TEST_CASE("scheme/ pruning and quantization combine, and the group size is that of the weights") {
  const Result<Scheme> scheme = scheme_from_name("2:4+W4A16-ASYM", 64);
  REQUIRE(scheme.ok());
  CHECK(scheme->name == "2:4+w4a16_asym");
  CHECK(scheme->sparsity == Sparsity{2, 4});
  CHECK(scheme->weight->group_size == 64);
  CHECK_FALSE(scheme->weight->symmetric);
  CHECK(scheme_from_name("4:8+w8a8")->input == scheme_from_name("w8a8")->input);
  for (const char* name : {"2:4+", "+w4a16", "2:4+2:4", "w4a16+2:4", "2:4+w4a61", "2:4+w4a16+w8a16"}) {
    CHECK_FALSE(scheme_from_name(name).ok());
  }
}

TEST_CASE("scheme/ an unknown name suggests the nearest") {
  const Status status = scheme_from_name("w4a61").status();
  CHECK(status.code() == Code::kInvalidArgument);
  CHECK(status.message().find("did you mean 'w4a16'?") != std::string::npos);
}

TEST_CASE("scheme/ bits per weight count codes, scales and zero points") {
  const auto bits = [](const char* name, int64_t group, int64_t in) {
    return bits_per_weight(*scheme_from_name(name, group)->weight, in);
  };
  CHECK(bits("w4a16", 0, 4096) == doctest::Approx(4.125));
  CHECK(bits("w4a16_asym", 0, 4096) == doctest::Approx(4.15625));
  CHECK(bits("w4a16", 64, 4096) == doctest::Approx(4.25));
  CHECK(bits("w4a16", 0, 192) ==
        doctest::Approx(4 + 2 * 16.0 / 192));  // the last group is smaller, its scale is not
  CHECK(bits("w8a16", -1, 1024) == doctest::Approx(8 + 16.0 / 1024));
  CHECK(bits("fp8_block", 0, 4096) == doctest::Approx(8 + 16.0 / (128 * 128)));
  CHECK(bits("fp8_static", 0, 4096) == doctest::Approx(8));
}
