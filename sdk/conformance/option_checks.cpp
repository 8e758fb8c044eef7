// A plugin's options: its schema, and what it does with every value that the schema allows.
#include "check.h"
#include "plugin/guard.h"
#include "plugin/options_schema.h"

namespace slim::conformance {
namespace {

struct Described {
  std::string schema;
  std::vector<OptionInfo> options;
};

Result<Described> describe(const Subject& subject) {
  PluginRegistry registry;
  Described described;
  SLIM_ASSIGN(described.schema, registry.options_schema(subject.info.kind, subject.info.path));
  SLIM_ASSIGN(described.options, describe_options(subject.info.id, described.schema));
  return described;
}

Result<Outcome> schema(const Subject& subject) {
  SLIM_ASSIGN(const Described described, describe(subject));
  for (const OptionInfo& option : described.options) {
    if (option.description.empty())
      return failure("option '" + option.name + "' has no description in the schema");
  }
  return Outcome{false, std::to_string(described.options.size()) + " options"};
}

/// Hands options to a new object, as a run does before it reads any weight.
Status set_up(const Subject& subject, const std::string& schema, const Options& raw) {
  SLIM_ASSIGN(const Options options, check_options(subject.info.id, schema, raw));
  PluginRegistry registry;
  if (subject.info.kind == SLIM_BACKEND) {
    SLIM_ASSIGN(const auto backend, registry.backend(subject.info.path));
    const Status opened = guarded("open", [&] { return backend->open(options); });
    return no_device(opened) ? Status{} : opened;  // not the options' fault
  }
  SLIM_ASSIGN(const auto algorithm, registry.algorithm(subject.info.path));
  return guarded("setup", [&] { return algorithm->setup(options); });
}

Result<Outcome> defaults(const Subject& subject) {
  SLIM_ASSIGN(const Described described, describe(subject));
  SLIM_TRY(set_up(subject, described.schema, {}));
  return Outcome{};
}

Result<Outcome> refuses(const Subject& subject) {
  SLIM_ASSIGN(const Described described, describe(subject));
  std::vector<std::pair<std::string, std::string>> wrong{{"no_such_option", "1"}};
  for (const OptionInfo& option : described.options) {
    if (option.type != "string") wrong.emplace_back(option.name, "text");
    if (!option.range.empty() && option.type != "string") wrong.emplace_back(option.name, "1e300");
    if (!option.range.empty() && option.type == "string") wrong.emplace_back(option.name, "no such word");
  }
  for (const auto& [name, value] : wrong) {
    const Status status = set_up(subject, described.schema, {{name, value}});
    if (status.code() == Code::kInvalidArgument) continue;
    if (status.ok() && value == "1e300") continue;  // only bounded below
    return failure(name + "=" + value + " gives '" + status.message() +
                   "', expected an error about the argument");
  }
  return Outcome{};
}

Result<Outcome> choices(const Subject& subject) {
  SLIM_ASSIGN(const Described described, describe(subject));
  for (const OptionInfo& option : described.options) {
    if (option.type == "boolean") {
      for (const char* value : {"true", "false"})
        SLIM_TRY(set_up(subject, described.schema, {{option.name, value}}).in(option.name + "=" + value));
    }
    if (option.type != "string") continue;
    for (size_t begin = 0; begin < option.range.size();) {  // "a | b"
      const size_t end = std::min(option.range.find(" | ", begin), option.range.size());
      const std::string value = option.range.substr(begin, end - begin);
      const Status status = set_up(subject, described.schema, {{option.name, value}});
      // A choice may need another option; the message then says so.
      if (!status.ok() && status.code() != Code::kInvalidArgument)
        return Status(status).in(option.name + "=" + value);
      begin = end + 3;
    }
  }
  return Outcome{};
}

}  // namespace

std::vector<Check> option_checks() {
  return {{"options/schema", "the schema is valid and describes every option", &schema},
          {"options/defaults", "the defaults work", &defaults},
          {"options/refuses",
           "unknown options, wrong types and values out of range are errors about the argument", &refuses},
          {"options/choices", "every choice that the schema offers is taken", &choices}};
}

}  // namespace slim::conformance
