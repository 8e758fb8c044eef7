#include "common/chat/chat.hpp"
#include "input.h"

using namespace slim;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto chat = model::ChatTemplate::from_source(fuzz::text_of(data, size), "chat_template.jinja");
  if (!chat.ok()) return 0;
  using Kind = ContentPart::Kind;
  static const std::vector<Message> kMessages = {
      {"system", {{Kind::kText, " be brief ", {}, {}}}},
      {"user", {{Kind::kImage, "", {"cat.png"}, {}}, {Kind::kText, "what?", {}, {}}}},
      {"assistant", {{Kind::kText, "<think>\nso\n</think>\n\na cat", {}, {}}}}};
  const auto prompt = chat->render(kMessages, true);
  FUZZ_REQUIRE(!prompt.ok() || prompt->size() <= size_t{64} << 20);
  return 0;
}
