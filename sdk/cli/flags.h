#pragma once
#include <map>
#include <string>
#include <vector>

#include "slim/status.hpp"

namespace slim::cli {

/// An error in how the program was called.
inline Status usage(const std::string& message) { return {Code::kInvalidArgument, message}; }

/// One flag of a command: all that parsing and help need to know.
struct Flag {
  std::string name;         ///< without "--"
  std::string placeholder;  ///< of its value; empty: a switch
  std::string help;
  std::string key;  ///< the configuration key that it sets, or empty
  bool repeatable = false;
};

/// What a command line holds.
class Arguments {
 public:
  /// kInvalidArgument: an unknown flag (with the nearest), a missing, empty or second value.
  static Result<Arguments> parse(const std::vector<Flag>&, const std::vector<std::string>& words);

  bool has(const std::string& flag) const { return values_.count(flag) != 0; }
  /// The flag's value, or `fallback`.
  std::string text(const std::string& flag, const std::string& fallback = "") const;
  const std::vector<std::string>& all(const std::string& flag) const;
  /// The flag's value as an integer of at least `minimum`, or `fallback`.
  Result<int64_t> integer(const std::string& flag, int64_t fallback, int64_t minimum) const;
  const std::vector<std::string>& positional() const { return positional_; }

 private:
  std::map<std::string, std::vector<std::string>> values_;
  std::vector<std::string> positional_;
};

/// The flags as lines of help.
std::string flags_help(const std::vector<Flag>&);

/// Flags that every command has.
std::vector<Flag> common_flags();
std::vector<Flag> operator+(std::vector<Flag> a, const std::vector<Flag>& b);

}  // namespace slim::cli
