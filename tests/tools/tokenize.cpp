// Tokenizes for tests/oracle: tokenize TOKENIZER.json|FOLDER < {"texts": [...], "ids": [[...]]} > {"ids": [...], "texts": [...], ...}.
// tokenize --time TOKENIZER.json [TEXT_FILE] prints seconds of loading and of encoding.
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "common/text/tokenizer.hpp"

namespace {

using slim::model::Tokenizer;

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string read_all(std::istream& in) { return {std::istreambuf_iterator<char>(in), {}}; }

int fail(const slim::Status& status) {
  std::cerr << status.message() << "\n";
  return 1;
}

int time(const char* path, const char* text_path) {
  double start = seconds();
  auto tokenizer = Tokenizer::from_file(path);
  double loaded = seconds();
  if (!tokenizer.ok()) return fail(tokenizer.status());
  nlohmann::json out = {{"load", loaded - start}};
  if (text_path != nullptr) {
    std::ifstream file(text_path, std::ios::binary);
    std::string text = read_all(file);
    start = seconds();
    auto ids = tokenizer->encode(text);
    if (!ids.ok()) return fail(ids.status());
    out["encode"] = seconds() - start;
    out["tokens"] = ids->size();
  }
  std::cout << out.dump() << "\n";
  return 0;
}

int run(const char* path) {
  auto tokenizer =
      std::filesystem::is_directory(path) ? Tokenizer::from_folder(path) : Tokenizer::from_file(path);
  if (!tokenizer.ok()) return fail(tokenizer.status());
  nlohmann::json in = nlohmann::json::parse(read_all(std::cin)), out;
  out["vocab_size"] = tokenizer->vocab_size();
  for (const auto& text : in["texts"]) {
    auto ids = tokenizer->encode(text.get<std::string>());
    if (!ids.ok()) return fail(ids.status());
    out["ids"].push_back(*ids);
  }
  for (const auto& ids : in["ids"]) {
    auto list = ids.get<std::vector<int64_t>>();
    out["texts"].push_back({tokenizer->decode(list, true), tokenizer->decode(list, false)});
  }
  std::cout << out.dump();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  std::string_view first = argc > 1 ? argv[1] : "";
  if (first == "--time" && argc > 2) return time(argv[2], argc > 3 ? argv[3] : nullptr);
  if (argc == 2) return run(argv[1]);
  std::cerr << "usage: tokenize [--time] TOKENIZER.json|FOLDER [TEXT_FILE]\n";
  return 2;
}
