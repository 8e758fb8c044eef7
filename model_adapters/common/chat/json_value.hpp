#pragma once
#include <string_view>

#include "common/chat/jinja.hpp"

namespace slim::model::jinja {

/// The value of a JSON text, keys in their order; none for text that is no JSON or nests deeper than 100 levels. In time linear in the text.
Value value_of_json(std::string_view text);

}  // namespace slim::model::jinja
