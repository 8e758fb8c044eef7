#include "checkpoint/writer.h"

#include <ATen/ATen.h>
#include <doctest/doctest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstring>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "unit/checkpoint_files.h"

using namespace slim;
using namespace slim::test;

namespace {

struct Model {
  std::vector<TensorSpec> specs;
  std::map<std::string, at::Tensor> values;
  void add(const std::string& name, const at::Tensor& value) {
    specs.push_back({name, *from_scalar_type(value.scalar_type()), value.sizes().vec()});
    values[name] = value;
  }
};

// Tensors of many types and shapes, empty and 0-dimensional ones too.
Model random_model(uint64_t seed, int count) {
  std::mt19937_64 random(seed);
  const auto below = [&](uint64_t n) { return static_cast<int64_t>(random() % n); };
  constexpr std::array kTypes = {at::kByte,          at::kBFloat16, at::kFloat, at::kLong,
                                 at::kFloat8_e4m3fn, at::kBool,     at::kInt,   at::kHalf};
  Model model;
  for (int i = 0; i < count; ++i) {
    std::vector<int64_t> shape;
    for (int64_t dims = below(4); dims > 0; --dims) shape.push_back(below(6));
    at::Tensor value = at::empty(shape, kTypes[static_cast<size_t>(below(kTypes.size()))]);
    auto* bytes = static_cast<uint8_t*>(value.data_ptr());
    for (size_t k = 0; k < value.nbytes(); ++k)
      bytes[k] = value.scalar_type() == at::kBool ? random() & 1 : static_cast<uint8_t>(random());
    model.add("layer." + std::to_string(i) + (i % 2 ? ".weight" : ".\"odd\" näme"), value);
  }
  return model;
}

std::string raw(const at::Tensor& value) {
  const at::Tensor plain = value.contiguous();
  return {static_cast<const char*>(plain.data_ptr()), plain.nbytes()};
}

Status write_all(const Model& model, const WriterOptions& options) {
  SLIM_ASSIGN(const auto writer, CheckpointWriter::create(options, model.specs));
  for (const auto& [name, value] : model.values) SLIM_TRY(writer->put(name, value));
  SLIM_TRY(writer->write_file("config.json", "{}"));
  return writer->finish();
}

void check_holds(const std::string& folder, const Model& model) {
  const auto opened = Checkpoint::open(folder);
  REQUIRE_MESSAGE(opened.ok(), opened.status().message());
  CHECK((*opened)->tensors().size() == model.specs.size());
  for (const auto& [name, value] : model.values) {
    const auto read = (*opened)->read(name);
    REQUIRE(read.ok());
    CHECK((read->scalar_type() == value.scalar_type()));
    CHECK(read->sizes() == value.sizes());
    CHECK(raw(*read) == raw(value));
  }
}

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename().string());
  std::ranges::sort(names);
  return names;
}

WriterOptions into(const std::string& folder) { return {.folder = folder}; }

void check_message(const Status& status, Code code, const std::string& part) {
  CAPTURE(status.message());
  CHECK(status.code() == code);
  CHECK(status.message().find(part) != std::string::npos);
}

template <class T>
Status status_of(const Result<T>& result) {
  return result.status();
}

}  // namespace

TEST_CASE("writer/ what is written is read back, whatever the shard size") {
  for (const uint64_t seed : {1, 2, 3}) {
    const Model model = random_model(seed, 40);
    for (const int64_t shard : {int64_t{1}, int64_t{100}, int64_t{1} << 30}) {
      TempFolder folder;
      WriterOptions options = into(folder / "out");
      options.max_shard_size = shard;
      REQUIRE(write_all(model, options).ok());
      check_holds(folder / "out", model);
      CHECK(names_in(folder.path()) == std::vector<std::string>{"out"});
      CHECK(fs::exists(folder / "out/model.safetensors.index.json") ==
            !fs::exists(folder / "out/model.safetensors"));
    }
  }
}

TEST_CASE("writer/ weights may have another stem than model") {
  const Model model = random_model(5, 20);
  for (const int64_t shard : {int64_t{100}, int64_t{1} << 30}) {
    TempFolder folder;
    WriterOptions options = into(folder / "out");
    options.max_shard_size = shard;
    options.stem = "quant_model_weight_w8a8";
    REQUIRE(write_all(model, options).ok());
    check_holds(folder / "out", model);
    for (const std::string& name : names_in(folder / "out"))
      CHECK_MESSAGE((name == "config.json" || name.starts_with("quant_model_weight_w8a8")), name);
  }
}

TEST_CASE("writer/ the file of an external check is written on request") {
  // tests/oracle/test_checkpoint.py reads this with the safetensors package.
  const char* folder = std::getenv("SLIM_TEST_CHECKPOINT");
  if (folder == nullptr) return;
  Model model;
  model.add("scalar", at::scalar_tensor(2.5, at::kDouble));
  model.add("byte", at::tensor({7}, at::kByte));
  model.add("matrix", at::arange(12, at::kFloat).view({3, 4}).to(at::kBFloat16));
  model.add("ids", at::arange(5, at::kLong));
  model.add("none", at::empty({0, 3}, at::kHalf));
  model.add("fp8", at::tensor({1.0f, -2.0f, 448.0f}).to(at::kFloat8_e4m3fn));
  WriterOptions options = into(folder);
  options.max_shard_size = 48;
  REQUIRE(write_all(model, options).ok());
}

TEST_CASE("writer/ the layout is that of the format: metadata, padding, aligned tensors, an index") {
  TempFolder folder;
  Model model;
  model.add("a", at::ones({3}, at::kByte));
  model.add("b", at::ones({2}, at::kFloat));
  model.add("c", at::ones({1}, at::kByte));
  model.add("d", at::ones({1}, at::kLong));
  WriterOptions options = into(folder / "out");
  options.max_shard_size = 12;
  REQUIRE(write_all(model, options).ok());
  const std::string first = read_text_file(folder / "out/model-00001-of-00002.safetensors");
  uint64_t length = 0;
  std::memcpy(&length, first.data(), 8);
  CHECK(length % 8 == 0);
  const auto header = nlohmann::json::parse(first.substr(8, length));
  CHECK(header["__metadata__"] == nlohmann::json{{"format", "pt"}});
  CHECK(header["b"]["data_offsets"] == nlohmann::json{0, 8});   // wider elements first,
  CHECK(header["a"]["data_offsets"] == nlohmann::json{8, 11});  // then as given
  CHECK(header["c"]["data_offsets"] == nlohmann::json{11, 12});
  CHECK(first.size() == 8 + length + 12);
  const auto index = nlohmann::json::parse(read_text_file(folder / "out/model.safetensors.index.json"));
  CHECK(index["metadata"]["total_size"] == 20);
  CHECK(index["weight_map"]["a"] == "model-00001-of-00002.safetensors");
  CHECK(index["weight_map"]["d"] == "model-00002-of-00002.safetensors");
}

TEST_CASE(
    "writer/ the same tensors give the same bytes in any order of arrival, from any number of threads") {
  const Model model = random_model(7, 60);
  TempFolder folder;
  WriterOptions options = into(folder / "one");
  options.max_shard_size = 300;
  REQUIRE(write_all(model, options).ok());
  options.folder = folder / "many";
  {
    const auto writer = CheckpointWriter::create(options, model.specs);
    REQUIRE(writer.ok());
    std::atomic<size_t> next = 0;
    std::atomic<int> failures = 0;
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        for (size_t i = next++; i < model.specs.size(); i = next++) {
          const std::string& name = model.specs[model.specs.size() - 1 - i].name;
          if (!(*writer)->put(name, model.values.at(name)).ok()) ++failures;
        }
      });
    }
    for (auto& thread : threads) thread.join();
    CHECK(failures == 0);
    REQUIRE((*writer)->write_file("config.json", "{}").ok());
    REQUIRE((*writer)->finish().ok());
  }
  CHECK(names_in(folder / "one") == names_in(folder / "many"));
  for (const auto& name : names_in(folder / "one"))
    CHECK(read_text_file(folder.path() / "one" / name) == read_text_file(folder.path() / "many" / name));
}

TEST_CASE("writer/ of several threads that put the same tensor exactly one succeeds") {
  TempFolder folder;
  Model model;
  model.add("w", at::ones({1000}, at::kFloat));
  const auto writer = CheckpointWriter::create(into(folder / "out"), model.specs);
  REQUIRE(writer.ok());
  std::atomic<int> successes = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] { successes += (*writer)->put("w", model.values.at("w")).ok(); });
  for (auto& thread : threads) thread.join();
  CHECK(successes == 1);
}

TEST_CASE("writer/ strided, negated and conjugated views are written as their values") {
  TempFolder folder;
  Model model;
  model.add("transposed", at::arange(6, at::kFloat).view({2, 3}).t());
  model.add("conj", at::view_as_complex(at::arange(4, at::kFloat).view({2, 2})).conj());
  model.add("imaginary", at::imag(model.values.at("conj")));
  REQUIRE(write_all(model, into(folder / "out")).ok());
  const auto c = Checkpoint::open(folder / "out");
  REQUIRE(c.ok());
  for (const auto& [name, value] : model.values)
    CHECK(at::equal(*(*c)->read(name), value.resolve_conj().resolve_neg()));
}

TEST_CASE("writer/ stored bytes are copied under another name, sub-byte floats too") {
  TempFolder folder;
  write_text(folder.path() / "in/config.json", "{}");
  const std::string data(9 << 20, '\x5a');  // more than one chunk
  const auto size = static_cast<int64_t>(data.size());
  write_text(folder.path() / "in/model.safetensors",
             raw_file("{" + entry("big", "F4", "[" + std::to_string(2 * size) + "]", 0, size) + "," +
                          entry("none", "U8", "[0]", size, size) + "}",
                      data));
  const auto input = Checkpoint::open(folder / "in");
  REQUIRE(input.ok());
  const auto writer = CheckpointWriter::create(into(folder / "out"),
                                               {{"new", Dtype::kF4, {2 * size}}, {"none", Dtype::kU8, {0}}});
  REQUIRE(writer.ok());
  CHECK((*writer)->total_bytes() == size);
  check_message((*writer)->copy("new", **input, "absent"), Code::kNotFound, "absent");
  check_message((*writer)->copy("none", **input, "big"), Code::kInternal, "announced was U8 [0]");
  REQUIRE((*writer)->copy("new", **input, "big").ok());
  REQUIRE((*writer)->copy("none", **input, "none").ok());
  REQUIRE((*writer)->copy_file("config.json", folder / "in/config.json").ok());
  REQUIRE((*writer)->finish().ok());
  const auto output = Checkpoint::open(folder / "out");
  REQUIRE(output.ok());
  std::vector<std::byte> copied(data.size());
  REQUIRE((*output)->read_bytes("new", 0, copied).ok());
  CHECK(std::memcmp(copied.data(), data.data(), data.size()) == 0);
}

TEST_CASE("writer/ a number that is none is not copied, wherever it stands and whatever its type") {
  struct Case {
    const char* dtype;
    Dtype type;
    std::string largest, none;  // little-endian
  };
  for (const Case& c :
       {Case{"BF16", Dtype::kBF16, "\x7f\x7f", "\x80\x7f"},
        Case{"BF16", Dtype::kBF16, "\x7f\x7f", "\x81\xff"}, Case{"F16", Dtype::kF16, "\xff\x7b", "\xff\xff"},
        Case{"F32", Dtype::kF32, "\xff\xff\x7f\xff", "\x1\x2\x80\x7f"},
        Case{"F64", Dtype::kF64, "\xff\xff\xff\xff\xff\xff\xef\x7f", "\x1\x2\x3\x4\x5\x6\xf0\xff"}}) {
    const auto width = static_cast<int64_t>(c.none.size());
    for (const int64_t count : {int64_t{1}, int64_t{65}, (int64_t{1} << 20) / width + 3}) {
      for (const int64_t place : {int64_t{-1}, int64_t{0}, count - 1}) {
        TempFolder folder;
        write_text(folder.path() / "in/config.json", "{}");
        std::string data;
        for (int64_t i = 0; i < count; ++i) data += i == place ? c.none : c.largest;
        write_text(
            folder.path() / "in/model.safetensors",
            raw_file("{" + entry("a", c.dtype, "[" + std::to_string(count) + "]", 0, count * width) + "}",
                     data));
        const auto input = Checkpoint::open(folder / "in");
        REQUIRE(input.ok());
        const auto writer = CheckpointWriter::create(into(folder / "out"), {{"a", c.type, {count}}});
        REQUIRE(writer.ok());
        const Status status = (*writer)->copy("a", **input, "a");
        if (place < 0)
          CHECK(status.ok());
        else
          check_message(status, Code::kNumeric, "in: a holds NaN or Inf");
      }
    }
  }
}

TEST_CASE("writer/ only announced tensors are taken, each once, and all must come") {
  TempFolder folder;
  CHECK_FALSE(
      CheckpointWriter::create(into(folder / "out"), {{"a", Dtype::kU8, {1}}, {"a", Dtype::kU8, {1}}}).ok());
  const auto writer =
      CheckpointWriter::create(into(folder / "out"), {{"a", Dtype::kF32, {2}}, {"b", Dtype::kF32, {2}}});
  REQUIRE(writer.ok());
  CheckpointWriter& w = **writer;
  check_message(w.put("c", at::ones({2})), Code::kInternal, "not announced");
  check_message(w.put("a", at::ones({3})), Code::kInternal, "[3]");
  check_message(w.put("a", at::ones({2}, at::kHalf)), Code::kInternal, "F16");
  check_message(w.put("a", at::Tensor()), Code::kInternal, "no value");
  check_message(w.put("a", at::ones({2}, at::kComplexDouble)), Code::kInternal, "cannot hold");
  REQUIRE(w.put("a", at::ones({2})).ok());
  check_message(w.put("a", at::ones({2})), Code::kInternal, "twice");
  check_message(w.finish(), Code::kInternal, "the first is 'b'");
  CHECK_FALSE(fs::exists(folder / "out"));
  REQUIRE(w.put("b", at::ones({2})).ok());
  REQUIRE(w.finish().ok());
  CHECK_FALSE(w.finish().ok());
  CHECK_FALSE(w.put("a", at::ones({2})).ok());
}

TEST_CASE("writer/ an abandoned writer leaves nothing, not even the folders above") {
  TempFolder folder;
  {
    const auto writer = CheckpointWriter::create(into(folder / "runs/today/out"), {{"a", Dtype::kF32, {2}}});
    REQUIRE(writer.ok());
    REQUIRE((*writer)->write_file("sub/notes.txt", "x").ok());
    CHECK((*writer)->partial_folder() == folder / "runs/today/out.partial");
    CHECK(fs::exists(folder / "runs/today/out.partial/sub/notes.txt"));
  }
  CHECK(names_in(folder.path()).empty());
  {
    const auto kept = CheckpointWriter::create(into(folder / "out"), {{"a", Dtype::kF32, {2}}});
    REQUIRE(kept.ok());
    (*kept)->keep_partial(true);
  }
  CHECK(names_in(folder.path()) == std::vector<std::string>{"out.partial"});
}

TEST_CASE("writer/ another process goes on with what was kept, and gives the same bytes") {
  const Model model = random_model(9, 40);
  TempFolder folder;
  WriterOptions options = into(folder / "one");
  options.max_shard_size = 200;
  REQUIRE(write_all(model, options).ok());
  options.folder = folder / "two";
  std::map<std::string, uint64_t> finished;
  {
    const auto writer = CheckpointWriter::create(options, model.specs);
    REQUIRE(writer.ok());
    for (size_t i = 0; i < model.specs.size() / 2; ++i) {
      REQUIRE((*writer)->put(model.specs[i].name, model.values.at(model.specs[i].name)).ok());
    }
    const auto checksums = (*writer)->sync_finished();
    REQUIRE(checksums.ok());
    finished = *checksums;
    CHECK(finished.size() == model.specs.size() / 2);
    CHECK((*writer)->sync_finished()->empty());
    (*writer)->keep_partial(true);
  }
  options.resume = true;
  const auto writer = CheckpointWriter::create(options, model.specs);
  REQUIRE_MESSAGE(writer.ok(), writer.status().message());
  REQUIRE((*writer)->adopt(finished).ok());
  for (const auto& [name, value] : model.values)
    CHECK((*writer)->put(name, value).ok() != finished.contains(name));
  REQUIRE((*writer)->write_file("config.json", "{}").ok());
  REQUIRE((*writer)->finish().ok());
  REQUIRE(names_in(folder / "one") == names_in(folder / "two"));
  for (const std::string& name : names_in(folder / "one")) {
    CHECK_MESSAGE(read_text_file(folder / ("one/" + name)) == read_text_file(folder / ("two/" + name)), name);
  }
}

TEST_CASE("writer/ what was changed since, or planned otherwise, is not gone on with") {
  TempFolder folder;
  Model model;
  model.add("a", at::ones({2}));
  model.add("b", at::zeros({3}));
  std::map<std::string, uint64_t> finished;
  {
    const auto writer = CheckpointWriter::create(into(folder / "out"), model.specs);
    REQUIRE((*writer)->put("a", model.values.at("a")).ok());
    finished = *(*writer)->sync_finished();
    (*writer)->keep_partial(true);
  }
  WriterOptions options = into(folder / "out");
  options.resume = true;
  auto other = model.specs;
  other[1].shape = {4};
  CHECK(CheckpointWriter::create(options, other).status().code() == Code::kCorrupt);
  REQUIRE(fs::exists(folder / "out.partial"));
  const auto writer = CheckpointWriter::create(options, model.specs);
  REQUIRE(writer.ok());
  check_message((*writer)->adopt({{"absent", 1}}), Code::kCorrupt, "absent");
  check_message((*writer)->adopt({{"a", finished.at("a") + 1}}), Code::kCorrupt, "'a'");
  CHECK(!CheckpointWriter::check_unused(folder / "out.partial").ok());
}

TEST_CASE("writer/ what a crash left is replaced, what another writer holds is not") {
  TempFolder folder;
  Model model;
  model.add("a", at::ones({2}));
  write_text(folder.path() / "out.partial/rubbish", "x");
  fs::create_directory(folder.path() / "out.partial/.slim");
  {
    const auto writer = CheckpointWriter::create(into(folder / "out/"), model.specs);
    REQUIRE(writer.ok());
    check_message(status_of(CheckpointWriter::create(into(folder / "out"), model.specs)),
                  Code::kInvalidArgument, "another process");
    REQUIRE((*writer)->put("a", at::ones({2})).ok());
    REQUIRE((*writer)->write_file("config.json", "{}").ok());
    REQUIRE((*writer)->finish().ok());
  }
  CHECK(names_in(folder / "out") == std::vector<std::string>{"config.json", "model.safetensors"});
  CHECK(names_in(folder.path()) == std::vector<std::string>{"out"});
}

TEST_CASE("writer/ an existing output is replaced only on request, and kept until the new one is complete") {
  TempFolder folder;
  Model old_model, new_model;
  old_model.add("old", at::ones({2}));
  new_model.add("new", at::ones({2}));
  WriterOptions options = into(folder / "out");
  REQUIRE(write_all(old_model, options).ok());
  check_message(write_all(new_model, options), Code::kInvalidArgument, "--overwrite");
  check_holds(folder / "out", old_model);
  options.overwrite = true;
  { REQUIRE(CheckpointWriter::create(options, new_model.specs).ok()); }
  check_holds(folder / "out", old_model);
  REQUIRE(write_all(new_model, options).ok());
  check_holds(folder / "out", new_model);
  CHECK(names_in(folder.path()) == std::vector<std::string>{"out"});
}

TEST_CASE("writer/ overwriting spares what is no checkpoint") {
  TempFolder folder;
  Model model;
  model.add("a", at::ones({2}));
  write_text(folder.path() / "home/letters.txt", "dear");
  WriterOptions options = into(folder / "home");
  options.overwrite = true;
  check_message(write_all(model, options), Code::kInvalidArgument, "no checkpoint");
  options.folder = folder / "home/letters.txt";
  check_message(write_all(model, options), Code::kInvalidArgument, "no checkpoint");
  CHECK(read_text_file(folder / "home/letters.txt") == "dear");
}

TEST_CASE("writer/ overwriting spares a folder with anything that slim did not write") {
  Model model;
  model.add("a", at::ones({2}));
  for (const bool checksums : {false, true}) {
    for (const char* foreign : {"src/main.py", "finetune/model.safetensors", "calib.jsonl", ".git/config"}) {
      CAPTURE(checksums);
      CAPTURE(foreign);
      TempFolder folder;
      WriterOptions options = into(folder / "out");
      options.checksums = checksums;
      REQUIRE(write_all(model, options).ok());
      options.overwrite = true;
      REQUIRE(write_all(model, options).ok());
      write_text(folder.path() / "out" / foreign, "precious");
      check_message(write_all(model, options), Code::kInvalidArgument, "slim did not write");
      CHECK(read_text_file(folder / ("out/" + std::string(foreign))) == "precious");
      CHECK(names_in(folder.path()) == std::vector<std::string>{"out"});
    }
  }
}

TEST_CASE(
    "writer/ an output is unfinished until it has its name, and an old one that gave its name away is not "
    "it") {
  TempFolder folder;
  Model model;
  model.add("a", at::ones({2}));
  {
    const auto writer = CheckpointWriter::create(into(folder / "out"), model.specs);
    REQUIRE(writer.ok());
    CHECK(CheckpointWriter::is_unfinished(folder / "out"));
  }
  CHECK(!CheckpointWriter::is_unfinished(folder / "out"));
  REQUIRE(write_all(model, into(folder / "out")).ok());
  CHECK(!CheckpointWriter::is_unfinished(folder / "out"));
  CHECK(names_in(folder / "out") == std::vector<std::string>{"config.json", "model.safetensors"});
  fs::rename(folder.path() / "out",
             folder.path() / "out.partial");  // killed between the exchange of names and the next step
  CHECK(!CheckpointWriter::is_unfinished(folder / "out"));
}

TEST_CASE("writer/ overwriting spares what the run reads") {
  TempFolder folder;
  Model model;
  model.add("a", at::ones({2}));
  WriterOptions options = into(folder / "out");
  REQUIRE(write_all(model, options).ok());
  options.overwrite = true;
  options.kept = {"", folder / "out/config.json"};
  check_message(write_all(model, options), Code::kInvalidArgument, "this run reads");
  check_holds(folder / "out", model);
}

TEST_CASE("writer/ a folder in the way of the unfinished output is deleted only if slim began it") {
  TempFolder folder;
  Model model;
  model.add("a", at::ones({2}));
  write_text(folder.path() / "out.partial/thesis.txt", "precious");
  const WriterOptions options = into(folder / "out");
  check_message(write_all(model, options), Code::kInvalidArgument, "in the way");
  CHECK(read_text_file(folder / "out.partial/thesis.txt") == "precious");
  fs::remove(folder.path() / "out.partial/thesis.txt");
  CHECK(write_all(model, options).ok());  // empty
  CHECK(names_in(folder / "out") == std::vector<std::string>{"config.json", "model.safetensors"});
}

TEST_CASE("writer/ inputs are neither equal to, inside nor around the output") {
  TempFolder folder;
  write_text(folder.path() / "in/config.json", "{}");
  fs::create_directory_symlink(folder.path() / "in", folder.path() / "link");
  for (const char* output : {"in", "in/", "in/sub/out", "", "link", "link/out", "other/../in"}) {
    WriterOptions options = into(folder / output);
    options.inputs = {folder / "in"};
    options.overwrite = true;
    check_message(status_of(CheckpointWriter::create(options, {{"a", Dtype::kU8, {1}}})),
                  Code::kInvalidArgument, "input");
  }
  WriterOptions options = into(folder / "in2");
  options.inputs = {folder / "in", folder / "in2.partial"};
  check_message(status_of(CheckpointWriter::create(options, {{"a", Dtype::kU8, {1}}})),
                Code::kInvalidArgument, "in2.partial");
  options.inputs.pop_back();
  CHECK(CheckpointWriter::create(options, {{"a", Dtype::kU8, {1}}}).ok());
  CHECK(names_in(folder.path()) == std::vector<std::string>{"in", "link"});
}

TEST_CASE("writer/ side files stay inside the folder and off the weights") {
  TempFolder folder;
  const auto writer = CheckpointWriter::create(into(folder / "out"), {{"a", Dtype::kU8, {1}}});
  REQUIRE(writer.ok());
  for (const char* name : {"", "..", "../x", "/x", "a/../x", "./x", "x/", "model.safetensors"}) {
    CHECK((*writer)->write_file(name, "x").code() == Code::kInvalidArgument);
  }
  REQUIRE((*writer)->write_file("notes.txt", "a longer text").ok());
  REQUIRE((*writer)->write_file("notes.txt", "short").ok());
  CHECK(read_text_file((*writer)->partial_folder() + "/notes.txt") == "short");
  CHECK((*writer)->copy_file("x", folder / "absent").code() == Code::kNotFound);
}

TEST_CASE("writer/ a disk that is too small is refused before any work, with both numbers") {
  TempFolder folder;
  const auto status =
      status_of(CheckpointWriter::create(into(folder / "out"), {{"huge", Dtype::kU8, {int64_t{1} << 60}}}));
  check_message(status, Code::kIo, "1152921504606847");
  check_message(status, Code::kIo, "available");
  CHECK(names_in(folder.path()).empty());
}

TEST_CASE("writer/ a limit on file sizes is met when the space is reserved") {
  TempFolder folder;
  struct rlimit before {};
  ::getrlimit(RLIMIT_FSIZE, &before);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  struct rlimit small = before;
  small.rlim_cur = 1 << 16;
  ::setrlimit(RLIMIT_FSIZE, &small);
  const auto status =
      status_of(CheckpointWriter::create(into(folder / "out"), {{"a", Dtype::kU8, {1 << 17}}}));
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  check_message(status, Code::kIo, "reserve");
  CHECK(names_in(folder.path()).empty());
}

namespace {

constexpr int kNoNamespace = 77;

// In a child with a mount namespace of its own: a file system of 1 MiB, first too small for the weights, then
// for a side file.
int fill_small_disk(const std::string& folder) {
  if (::unshare(::geteuid() == 0 ? CLONE_NEWNS : CLONE_NEWNS | CLONE_NEWUSER) != 0) return kNoNamespace;
  if (::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return kNoNamespace;
  if (::mount("tmpfs", folder.c_str(), "tmpfs", 0, "size=1m") != 0) return kNoNamespace;
  const Status large =
      status_of(CheckpointWriter::create(into(folder + "/out"), {{"a", Dtype::kU8, {2 << 20}}}));
  if (large.code() != Code::kIo || large.message().find(" are available") == std::string::npos) return 1;
  {
    const auto writer = CheckpointWriter::create(into(folder + "/out"), {{"a", Dtype::kU8, {600'000}}});
    if (!writer.ok()) return 2;
    if ((*writer)->write_file("notes", std::string(600'000, 'x')).code() != Code::kIo) return 3;
  }
  return names_in(folder).empty() ? 0 : 4;
}

}  // namespace

TEST_CASE("writer/ a really full disk gives errors and leaves nothing") {
  TempFolder folder;
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) ::_exit(fill_small_disk(folder.path().string()));
  int state = 0;
  REQUIRE(::waitpid(child, &state, 0) == child);
  REQUIRE(WIFEXITED(state));
  if (WEXITSTATUS(state) == kNoNamespace) {
    MESSAGE("no small file system can be mounted here");
    return;
  }
  CHECK(WEXITSTATUS(state) == 0);
}
