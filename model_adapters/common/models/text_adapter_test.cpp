#include "common/models/text_adapter.hpp"

#include <ATen/ATen.h>
#include <doctest/doctest.h>

using namespace slim;
using namespace slim::model;

namespace {

std::unique_ptr<Processor> toy_processor() {
  auto processor = make_text_processor("tests/data/toy-hunyuan-dense", "<|eos|>");
  REQUIRE_MESSAGE(processor.ok(), processor.status().message());
  return *std::move(processor);
}

Document chat_of(const std::string& question, ContentPart::Kind second = ContentPart::Kind::kText) {
  ContentPart text, other;
  text.text = question;
  other.kind = second;
  Document document;
  document.origin = "calib.jsonl:4";
  document.messages = {{"user", {text}}};
  if (second != ContentPart::Kind::kText) document.messages[0].content.push_back(other);
  return document;
}

}  // namespace

TEST_CASE("text_adapter/ a chat becomes the template's special tokens and text, cut at max_tokens") {
  const auto processor = toy_processor();
  EncodeOptions options;
  options.generation_prompt = true;
  const auto sample = processor->encode(chat_of("How many?"), options);
  REQUIRE(sample.ok());
  const auto& ids = sample->tensors.at("input_ids");
  CHECK(ids[0].item<int64_t>() == 1792);
  CHECK(ids[1].item<int64_t>() == 1795);
  CHECK(ids[-1].item<int64_t>() == 1796);
  CHECK(sample->text_tokens == ids.size(0));
  CHECK(sample->image_tokens == 0);
  options.max_tokens = 3;
  const auto cut = processor->encode(chat_of("How many?"), options);
  REQUIRE(cut.ok());
  CHECK(cut->text_tokens == 3);
  CHECK(at::equal(cut->tensors.at("input_ids"), ids.slice(0, 0, 3)));
}

TEST_CASE("text_adapter/ images and videos are unsupported, and the sample is named") {
  const auto processor = toy_processor();
  for (const auto kind : {ContentPart::Kind::kImage, ContentPart::Kind::kVideo}) {
    const auto sample = processor->encode(chat_of("What is it?", kind), {});
    REQUIRE(!sample.ok());
    CHECK(sample.status().code() == Code::kUnsupported);
    CHECK(sample.status().message().find("calib.jsonl:4: ") == 0);
    CHECK(sample.status().message().find("takes no images") != std::string::npos);
  }
}

TEST_CASE("text_adapter/ generation ends at the tokenizer's end token") {
  CHECK(toy_processor()->stop_tokens() == std::vector<int64_t>{1800});
}
