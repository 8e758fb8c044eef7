#include "flags.h"

#include <boost/program_options/options_description.hpp>
#include <boost/program_options/parsers.hpp>
#include <charconv>

#include "synonyms.h"
#include "util/nearest.h"

namespace slim::cli {
namespace {

namespace po = boost::program_options;

po::options_description describe(const std::vector<Flag>& flags) {
  po::options_description description;
  for (const Flag& flag : flags) {
    if (flag.placeholder.empty()) {
      description.add_options()(flag.name.c_str(), "");
    } else {
      description.add_options()(flag.name.c_str(), po::value<std::string>(), "");
    }
  }
  return description;
}

const Flag* find_flag(const std::vector<Flag>& flags, const std::string& name) {
  for (const Flag& flag : flags) {
    if (flag.name == name) return &flag;
  }
  return nullptr;
}

Status unknown_flag(const std::vector<Flag>& flags, const std::string& word) {
  std::vector<std::string> names;
  for (const Flag& flag : flags) names.push_back("--" + flag.name);
  const std::string name = word.substr(0, word.find('='));
  const std::string advice = advice_for(name);
  const char* verb = advice.starts_with("nothing") ? "'; " : "'; here it is ";
  if (!advice.empty()) return usage("unknown option '" + name + verb + advice);
  return usage("unknown option '" + name + "'" + did_you_mean(name, names));
}

Result<std::vector<po::option>> split_words(const std::vector<Flag>& flags,
                                            const std::vector<std::string>& words) {
  namespace style = po::command_line_style;
  constexpr int kStyle = style::allow_long | style::long_allow_adjacent | style::long_allow_next;
  try {
    const po::options_description description = describe(flags);
    return po::command_line_parser(words)
        .options(description)
        .style(kStyle)
        .allow_unregistered()
        .run()
        .options;
  } catch (const po::error& error) {
    return usage(error.what());
  }
}

/// `--model --output DIR`: the value was forgotten. `--prompt=--output` means it.
bool takes_flag_as_value(const std::vector<Flag>& flags, const po::option& option) {
  if (option.original_tokens.size() < 2) return false;
  const std::string& value = option.original_tokens[1];
  return value.starts_with("--") && find_flag(flags, value.substr(2, value.find('=') - 2)) != nullptr;
}

}  // namespace

Result<Arguments> Arguments::parse(const std::vector<Flag>& flags, const std::vector<std::string>& words) {
  SLIM_ASSIGN(const auto options, split_words(flags, words));
  Arguments arguments;
  const Flag* last = nullptr;
  for (const po::option& option : options) {
    const std::string word = option.original_tokens.empty() ? option.string_key : option.original_tokens[0];
    const Flag* flag = find_flag(flags, option.string_key);
    const bool looks_like_flag = word.size() > 1 && word[0] == '-';
    if (!flag && looks_like_flag) return unknown_flag(flags, word);
    if (!flag && last && last->placeholder.empty() && (word == "true" || word == "false"))
      return usage("option '--" + last->name +
                   "' takes no value: " + (word == "true" ? "leave 'true' out" : "leave the option out"));
    last = flag;
    if (!flag) {
      arguments.positional_.push_back(word);
      continue;
    }
    std::vector<std::string>& values = arguments.values_[flag->name];
    if (!values.empty() && !flag->repeatable) return usage("option '--" + flag->name + "' is given twice");
    const std::string value = option.value.empty() ? "true" : option.value[0];
    if (takes_flag_as_value(flags, option))
      return usage("option '--" + flag->name + "' has no value; found '" + value + "'");
    if (value.empty()) return usage("option '--" + flag->name + "' has an empty value");
    values.push_back(value);
  }
  return arguments;
}

std::string Arguments::text(const std::string& flag, const std::string& fallback) const {
  const auto found = values_.find(flag);
  return found == values_.end() ? fallback : found->second.back();
}

const std::vector<std::string>& Arguments::all(const std::string& flag) const {
  static const std::vector<std::string> none;
  const auto found = values_.find(flag);
  return found == values_.end() ? none : found->second;
}

Result<int64_t> Arguments::integer(const std::string& flag, int64_t fallback, int64_t minimum) const {
  if (!has(flag)) return fallback;
  const std::string value = text(flag);
  int64_t number = 0;
  const auto [stop, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  if (error != std::errc{} || stop != value.data() + value.size() || number < minimum) {
    return usage("option '--" + flag + "': found '" + value + "', expected an integer of at least " +
                 std::to_string(minimum));
  }
  return number;
}

std::string flags_help(const std::vector<Flag>& flags) {
  constexpr size_t kColumn = 30;
  std::string help;
  for (const Flag& flag : flags) {
    std::string line = "  --" + flag.name + (flag.placeholder.empty() ? "" : " " + flag.placeholder);
    line.resize(std::max(line.size() + 2, kColumn), ' ');
    help += line + flag.help + "\n";
  }
  return help;
}

std::vector<Flag> common_flags() {
  return {{"plugin-dir", "DIR", "look for plugins here first (repeatable)", "run.plugin_dirs", true},
          {"json", "", "print the result as one JSON object", ""},
          {"quiet", "", "no progress, warnings only", ""},
          {"help", "", "this text", ""}};
}

std::vector<Flag> operator+(std::vector<Flag> a, const std::vector<Flag>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

}  // namespace slim::cli
