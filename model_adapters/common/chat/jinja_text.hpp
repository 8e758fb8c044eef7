#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

/// Python's string operations, as templates expect them; valid UTF-8 in and out.
namespace slim::model::jinja {

/// One string per code point.
std::vector<std::string> characters(std::string_view text);
/// The number of code points.
int64_t count_characters(std::string_view text);
/// Where `part` begins in `text`, from byte `from` on, or npos. Linear in both.
size_t find_text(std::string_view text, std::string_view part, size_t from = 0);
/// str.strip: without the given characters (white space if none are given) at the asked ends.
std::string stripped(std::string_view text, const std::optional<std::string>& characters, bool left,
                     bool right);
/// str.split: by runs of white space if there is no separator. `limit` < 0: no limit.
std::vector<std::string> split_text(std::string_view text, const std::optional<std::string>& separator,
                                    int64_t limit);
/// As json.dumps(ensure_ascii=False).
void append_json_string(std::string_view text, std::string& out);

}  // namespace slim::model::jinja
