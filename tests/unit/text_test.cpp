#include "util/text.h"

#include <doctest/doctest.h>

using namespace slim;

TEST_CASE("text/ is cut between characters") {
  CHECK(cut_text("abc", 3) == "abc");
  CHECK(cut_text("abcd", 3) == "abc...");
  const std::string chinese = "\xE8\xBF\x99\xE6\x98\xAF";
  for (size_t bytes = 0; bytes < chinese.size(); ++bytes) CHECK(is_utf8(cut_text(chinese, bytes)));
  CHECK(cut_text("\x80\x80\x80", 1) == "...");
}

TEST_CASE("text/ nothing that a terminal obeys is printed") {
  CHECK(terminal_text("a\tb\nc \xC3\xA9 \xF0\x9F\x98\x80") == "a\tb\nc \xC3\xA9 \xF0\x9F\x98\x80");
  CHECK(terminal_text("\x1b[2J\x07\r\x7f") == "\\x1b[2J\\x07\\x0d\\x7f");
  CHECK(terminal_text("\xC2\x9B 31m") == "\\xc2\\x9b 31m");  // the same in one character
  CHECK(terminal_text("latin \xE9.") == "latin \\xe9.");
  CHECK(terminal_text("\xC3") == "\\xc3");
}

TEST_CASE("text/ UTF-8 is what Unicode's table 3-7 says") {
  for (const char* good :
       {"", "a", "\xC2\x80", "\xE0\xA0\x80", "\xED\x9F\xBF", "\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF"})
    CHECK(is_utf8(good));
  for (const char* bad : {"\x80", "\xC0\x80", "\xC1\xBF", "\xE0\x80\x80", "\xED\xA0\x80", "\xF0\x80\x80\x80",
                          "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xE2\x82", "\xFF"})
    CHECK_FALSE(is_utf8(bad));
}
