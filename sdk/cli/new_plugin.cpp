// slim plugins new KIND NAME: copies a template and gives it its name.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "output.h"
#include "plugin/registry.h"
#include "plugin/scan.h"
#include "plugins.h"
#include "util/nearest.h"

namespace slim::cli {
namespace {

namespace fs = std::filesystem;

const std::vector<std::string> kKinds = {"algorithm", "adapter", "backend", "format"};

/// share/slim/templates beside the program's folder.
Result<fs::path> templates_folder() {
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  if (error) return Status(Code::kIo, "/proc/self/exe: " + error.message());
  const fs::path folder = program.parent_path().parent_path() / "share" / "slim" / "templates";
  if (fs::is_directory(folder, error)) return folder;
  return Status(Code::kNotFound,
                folder.string() + ": no such folder; the installation of slim is not complete");
}

/// What becomes of the words of a template.
struct Names {
  std::string template_id, template_class;  ///< "my_algorithm", "MyAlgorithm"
  std::string id, file_id, class_name;      ///< "fast-awq", "fast_awq", "FastAwq"
};

std::string camel_case(const std::string& id) {
  std::string name;
  bool upper = true;
  for (const char c : id) {
    const bool separator = c == '_' || c == '-';
    if (!separator) name += upper && c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
    upper = separator;
  }
  return name;
}

Result<Names> names_of(const std::string& kind, const std::string& id) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
  };
  const bool letters = std::all_of(id.begin(), id.end(), allowed);
  if (id.empty() || id.size() > 64 || !letters || id[0] < 'a' || id[0] > 'z') {
    return usage("the plugin's name: found '" + id +
                 "', expected small letters, digits, '_' and '-', a letter first, at most 64");
  }
  std::string file_id = id;
  std::replace(file_id.begin(), file_id.end(), '-', '_');
  const std::string template_id = "my_" + kind;
  return Names{template_id, camel_case(template_id), id, file_id, camel_case(id)};
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size()))
    text.replace(at, from.size(), to);
  return text;
}

Result<std::string> read_file(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  std::ostringstream text;
  text << stream.rdbuf();
  if (!stream) return Status(Code::kIo, path.string() + ": cannot be read");
  return text.str();
}

Status write_copy(const fs::path& from, const fs::path& folder, const Names& names) {
  SLIM_ASSIGN(std::string text, read_file(from));
  text = replaced(replaced(std::move(text), names.template_class, names.class_name), names.template_id,
                  names.id);
  const fs::path to = folder / replaced(from.filename().string(), names.template_id, names.file_id);
  std::ofstream stream(to, std::ios::binary);
  stream << text;
  stream.close();
  return stream ? Status{} : Status(Code::kIo, to.string() + ": cannot be written");
}

Status check_new_id(const std::string& kind, const std::string& id, const std::vector<std::string>& dirs) {
  for (const PluginInfo& info : PluginRegistry(dirs).list()) {
    if (kind_name(info.kind) == kind && info.id == id) {
      return usage("there is an " + kind + " '" + id + "' already (" + info.path + "); choose another name");
    }
  }
  return {};
}

Status check_new_folder(const fs::path& folder) {
  std::error_code error;
  if (!fs::exists(folder, error)) return {};
  if (fs::is_directory(folder, error) && fs::is_empty(folder, error)) return {};
  return usage(folder.string() + ": exists already; choose another folder with --dir");
}

/// The folder's path.
Result<std::string> create(const std::string& kind, const std::string& id, const Arguments& arguments) {
  SLIM_ASSIGN(const Names names, names_of(kind, id));
  SLIM_ASSIGN(const auto dirs, plugin_dirs(arguments));
  SLIM_TRY(check_new_id(kind, id, dirs));
  const fs::path folder = arguments.text("dir", id);
  SLIM_TRY(check_new_folder(folder));
  SLIM_ASSIGN(const fs::path templates, templates_folder());
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) return Status(Code::kIo, folder.string() + ": cannot be made: " + error.message());
  for (const char* part : {"common", kind.c_str()}) {
    for (const auto& entry : fs::directory_iterator(templates / part)) {
      if (entry.is_regular_file()) SLIM_TRY(write_copy(entry.path(), folder, names));
    }
  }
  return folder.string();
}

std::string prefix_of_program() {
  std::error_code error;
  return fs::read_symlink("/proc/self/exe", error).parent_path().parent_path().string();
}

}  // namespace

std::vector<Flag> new_plugin_flags() {
  return {{"dir", "DIR", "new: the folder to make (default: NAME)", ""}};
}

int new_plugin(const Arguments& arguments) {
  const std::vector<std::string>& words = arguments.positional();
  if (words.size() != 3) return fail(usage("expected `slim plugins new " + join(kKinds, "|") + " NAME`"));
  const std::string& kind = words[1];
  if (std::find(kKinds.begin(), kKinds.end(), kind) == kKinds.end()) {
    return fail(usage("no kind of plugin '" + kind + "'" + did_you_mean(kind, kKinds) +
                      " (there are: " + join(kKinds) + ")"));
  }
  const auto folder = create(kind, words[2], arguments);
  if (!folder.ok()) return fail(folder.status());
  return print("made " + *folder + ", a plugin that works. To build and test it:\n  cmake -S " + *folder +
               " -B " + *folder + "/build -G Ninja -DCMAKE_PREFIX_PATH=" + prefix_of_program() +
               "\n  cmake --build " + *folder + "/build\n  ctest --test-dir " + *folder +
               "/build --output-on-failure\n");
}

}  // namespace slim::cli
