#include "data/dataset.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "data/shuffle.h"

using namespace slim;
namespace fs = std::filesystem;

namespace {

/// A folder of its own for each test case, removed at its end.
class Folder {
 public:
  Folder() {
    std::string pattern = (fs::temp_directory_path() / "slim-dataset-XXXXXX").string();
    REQUIRE(mkdtemp(pattern.data()) != nullptr);
    path_ = fs::canonical(pattern);
  }
  ~Folder() { fs::remove_all(path_); }
  std::string write(const std::string& name, std::string_view content) const {
    fs::create_directories((path_ / name).parent_path());
    std::ofstream(path_ / name, std::ios::binary) << content;
    return (path_ / name).string();
  }
  std::string path(const std::string& name = "") const { return (path_ / name).string(); }

 private:
  fs::path path_;
};

std::string shape_of(const Document& document) {
  if (document.messages.empty()) return "text:" + document.text;
  std::string shape;
  for (const Message& message : document.messages) {
    shape += (shape.empty() ? "" : " | ") + message.role;
    for (const ContentPart& part : message.content) {
      if (part.kind == ContentPart::Kind::kText) shape += " " + part.text;
      if (part.kind == ContentPart::Kind::kImage) {
        shape += part.files.empty() ? " bytes(" + part.bytes + ")"
                                    : " img(" + fs::path(part.files[0]).filename().string() + ")";
      }
      if (part.kind == ContentPart::Kind::kVideo)
        shape += " video(" + std::to_string(part.files.size()) + ")";
    }
  }
  return shape;
}

/// What one line of JSONL becomes, beside the images a.png and images/b.png; or "error: ...".
std::string read_line(std::string_view line, const DatasetOptions& options = {}) {
  const Folder folder;
  folder.write("a.png", "A");
  folder.write("images/b.png", "B");
  const Result<Dataset> dataset = read_dataset(folder.write("d.jsonl", line), options);
  if (!dataset.ok()) return "error: " + dataset.status().message();
  REQUIRE(dataset->documents.size() == 1);
  CHECK(dataset->documents[0].origin == "d.jsonl:1");
  return shape_of(dataset->documents[0]);
}

bool mentions(const std::string& text, std::string_view part) {
  INFO(text);
  return text.find(part) != std::string::npos;
}

std::vector<std::string> numbers(int count) {
  std::vector<std::string> lines;
  for (int i = 0; i < count; ++i) lines.push_back(std::to_string(i));
  return lines;
}

std::string lines_of(const std::vector<std::string>& items) {
  std::string text;
  for (const std::string& item : items) text += item + "\n";
  return text;
}

std::vector<std::string> texts(const Dataset& dataset) {
  std::vector<std::string> all;
  for (const Document& document : dataset.documents) all.push_back(document.text);
  return all;
}

}  // namespace

TEST_CASE("dataset/ every accepted shape becomes the same kind of document") {
  CHECK(read_line(R"({"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yo"}]})") ==
        "user hi | assistant yo");
  CHECK(
      read_line(
          R"({"messages":[{"role":"user","content":[{"type":"image","image":"a.png"},{"type":"text","text":"hi"}]}]})") ==
      "user img(a.png) hi");
  CHECK(
      read_line(
          R"({"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"b.png"}}]}]})") ==
      "user img(b.png)");
  CHECK(
      read_line(R"({"messages":[{"role":"user","content":[{"type":"video","video":["a.png","b.png"]}]}]})") ==
      "user video(2)");
  CHECK(
      read_line(
          R"({"messages":[{"role":"user","content":[{"type":"image"},{"type":"text","text":"x"}]}],"images":["b.png"]})") ==
      "user img(b.png) x");
  CHECK(
      read_line(
          R"({"conversations":[{"from":"human","value":"see <image>?"},{"from":"gpt","value":"ok"}],"image":"a.png"})") ==
      "user see  img(a.png) ? | assistant ok");
  CHECK(read_line(R"({"question":"q","answer":7,"img_path":"images/b.png"})") ==
        "user img(b.png) q | assistant 7");
  CHECK(read_line(R"({"query":"q","label":["first","second"],"image":{"bytes":"aGk=","path":"x.png"}})") ==
        "user bytes(hi) q | assistant first");
  CHECK(read_line(R"({"instruction":"do","input":"this","output":"done"})") ==
        "user do\n\nthis | assistant done");
  CHECK(read_line(R"({"input":"in","output":"out"})") == "user in | assistant out");
  CHECK(read_line(R"({"text":"plain <image>"})") == "text:plain <image>");
}

TEST_CASE("dataset/ images may be file and data URLs") {
  const Folder folder;
  const std::string image = folder.write("sp ace.png", "A");
  const auto read = [&](const std::string& url) {
    const auto dataset =
        read_dataset(folder.write("d.jsonl", R"({"question":"q","image":")" + url + "\"}"), {});
    return dataset.ok() ? shape_of(dataset->documents[0]) : dataset.status().message();
  };
  CHECK(read("file://" + folder.path("sp%20ace.png")) == "user img(sp ace.png) q");
  CHECK(read("file://localhost" + folder.path("sp%20ace.png")) == "user img(sp ace.png) q");
  CHECK(read("data:image/png;base64,AAEC/w==").size() == std::string("user bytes(1234) q").size());
  CHECK(mentions(read("file://host/x.png"), "another host"));
  CHECK(mentions(read("https://example.org/x.png"), "not on this machine"));
  CHECK(mentions(read("data:image/png,x"), ";base64,"));
  for (const char* bad : {"A", "AB=C", "AAA", "AA-=", "AB==", "A===", "===="}) {
    CHECK(mentions(read(std::string("data:image/png;base64,") + bad), "base64"));
  }
}

TEST_CASE("dataset/ a path that leaves the folder is refused unless allowed") {
  const Folder outer;
  outer.write("secret.png", "S");
  const std::string file = outer.write("set/d.jsonl", R"({"question":"q","image":"../secret.png"})");
  CHECK(mentions(read_dataset(file, {}).status().message(), "outside"));
  CHECK(shape_of(read_dataset(file, {.allow_outside = true})->documents[0]) == "user img(secret.png) q");

  outer.write("set/d.jsonl", R"({"question":"q","image":")" + outer.path("secret.png") + "\"}");
  CHECK(mentions(read_dataset(file, {}).status().message(), "outside"));

  fs::create_symlink(outer.path("secret.png"), outer.path("set/link.png"));
  outer.write("set/d.jsonl", R"({"question":"q","image":"link.png"})");
  CHECK(mentions(read_dataset(file, {}).status().message(), "outside"));

  outer.write("set-two/x.png", "X");  // a sibling whose name begins with the folder's
  outer.write("set/d.jsonl", R"({"question":"q","image":"../set-two/x.png"})");
  CHECK(mentions(read_dataset(file, {}).status().message(), "outside"));
}

TEST_CASE("dataset/ errors say file, line, what was found and what was expected") {
  const Folder folder;
  const std::string file = folder.write("d.jsonl", "{\"text\":\"a\"}\n\n{\"txt\":\"b\"}\n");
  const std::string message = read_dataset(file, {}).status().message();
  CHECK(message.starts_with(file + ":3: "));
  CHECK(mentions(message, "'txt'"));
  CHECK(mentions(message, "expected messages"));

  CHECK(mentions(read_line(R"({"text":)"), "malformed JSON at byte"));
  CHECK(mentions(read_line(R"([1])"), "found array"));
  CHECK(mentions(read_line(R"({"messages":[]})"), "empty array"));
  CHECK(mentions(read_line(R"({"messages":[{"role":"user","content":"x"},{"role":"king","content":"x"}]})"),
                 "messages[1]: unknown role 'king'"));
  CHECK(mentions(read_line(R"({"messages":[{"role":"user","content":[{"type":"audio"}]}]})"), "'audio'"));
  CHECK(mentions(read_line(R"({"messages":[{"role":"user","content":[{"type":"video","video":"x.mp4"}]}]})"),
                 "list of its frames"));
  CHECK(mentions(read_line(R"({"question":"q","image":"no.png"})"), "not found"));
  CHECK(mentions(read_line(R"({"question":"<image> <image>","image":"a.png"})"), "more places"));
  CHECK(mentions(read_line(R"({"text":"t","image":"a.png"})"), "without a user"));
  CHECK(mentions(read_dataset(folder.path("none.jsonl"), {}).status().message(), "does not exist"));
  CHECK(mentions(read_dataset(folder.write("d.csv", "a"), {}).status().message(), "'.csv'"));
  CHECK(mentions(read_dataset(folder.write("e.jsonl", "\n"), {}).status().message(), "no document"));
}

TEST_CASE("dataset/ hostile lines give an error") {
  CHECK(mentions(read_line(std::string(100000, '[')), "nested deeper"));
  CHECK(mentions(read_line("{\"text\":" + std::string(100, '{')), "nested deeper"));
  CHECK(read_line(R"({"text":"[[[\"[[["})") == "text:[[[\"[[[");
  CHECK(mentions(read_line("{\"text\":\"\xC3\x28\"}"), "malformed JSON"));
  CHECK(mentions(read_line(R"({"text":1e999})"), "no double can hold"));
  CHECK(mentions(read_line(R"({"question":"q","image":"a.png\u0000.txt"})"), "zero byte"));
  CHECK(mentions(read_line(R"({"question":"q","image":""})"), "empty"));
  CHECK(mentions(read_line(R"({"question":"q","image":")" + std::string(10000, 'a') + "\"}"), "not found"));
  const std::string good =
      R"({"messages":[{"role":"user","content":[{"type":"image","image":"a.png"},{"type":"text","text":"hi"}]}]})";
  for (size_t cut = 1; cut < good.size(); ++cut) CHECK(read_line(good.substr(0, cut)).starts_with("error: "));
}

TEST_CASE("dataset/ text files hold one document a line") {
  const Folder folder;
  const auto dataset = read_dataset(folder.write("d.txt",
                                                 "\xEF\xBB\xBFone\r\n\n  \ntwo\nthr\xC3\xA9"
                                                 "e"),
                                    {});
  REQUIRE(dataset.ok());
  CHECK(texts(*dataset) == std::vector<std::string>{"one", "two",
                                                    "thr\xC3\xA9"
                                                    "e"});
  CHECK(dataset->documents[1].origin == "d.txt:4");
  for (const char* bad :
       {"\xC3", "\xC0\x80", "\xE0\x80\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xF8", "\x80"}) {
    CHECK(
        mentions(read_dataset(folder.write("bad.txt", bad), {}).status().message(), "bad.txt:1: not UTF-8"));
  }
}

TEST_CASE("dataset/ bad samples are counted when asked, and an all-bad set is an error") {
  const Folder folder;
  const std::string file = folder.write("d.jsonl", "{\"text\":\"a\"}\nnonsense\n{\"text\":\"b\"}\n");
  CHECK_FALSE(read_dataset(file, {}).ok());
  const auto dataset = read_dataset(file, {.skip_bad_samples = true});
  REQUIRE(dataset.ok());
  CHECK(texts(*dataset) == std::vector<std::string>{"a", "b"});
  REQUIRE(dataset->skipped.size() == 1);
  CHECK(dataset->skipped[0].starts_with("d.jsonl:2: malformed JSON"));
  CHECK(
      mentions(read_dataset(folder.write("e.jsonl", "x\ny\n"), {.skip_bad_samples = true}).status().message(),
               "all 2 samples"));
}

TEST_CASE("dataset/ num_samples takes the first, shuffled ones depend on the seed alone") {
  const Folder folder;
  const std::string file = folder.write("d.txt", lines_of(numbers(100)));
  CHECK(texts(*read_dataset(file, {.num_samples = 3})) == std::vector<std::string>{"0", "1", "2"});
  CHECK(read_dataset(file, {.num_samples = 1000})->documents.size() == 100);
  const auto order = [&](uint64_t seed) {
    return texts(*read_dataset(file, {.shuffle = true, .seed = seed}));
  };
  CHECK(order(1) == order(1));
  CHECK(order(1) != order(2));
  const auto shuffled = order(1);
  const auto all = numbers(100);
  CHECK(std::set<std::string>(shuffled.begin(), shuffled.end()) ==
        std::set<std::string>(all.begin(), all.end()));
  const auto some = texts(*read_dataset(file, {.num_samples = 10, .shuffle = true, .seed = 1}));
  CHECK(std::equal(some.begin(), some.end(), shuffled.begin()));
}

TEST_CASE("dataset/ the generator gives the published numbers and no place is preferred") {
  SplitMix64 random(1234567);
  CHECK(random.next() == 6457827717110365317u);
  CHECK(random.next() == 3203168211198807973u);
  CHECK(random.next() == 9817491932198370423u);
  std::array<int, 24> counts{};
  for (uint64_t seed = 0; seed < 24000; ++seed) {
    RandomSelection<int> selection(seed, 0);
    for (int i = 0; i < 4; ++i) selection.add(i);
    const std::vector<int> items = std::move(selection).take();
    int rank = 0;
    for (size_t i = 0; i < 4; ++i) {
      rank = rank * static_cast<int>(4 - i) +
             static_cast<int>(std::count_if(items.begin() + static_cast<long>(i), items.end(),
                                            [&](int x) { return x < items[i]; }));
    }
    ++counts[static_cast<size_t>(rank)];
  }
  // 1000 expected in each of the 24 orders, standard deviation 31: six of them.
  for (const int count : counts) CHECK(std::abs(count - 1000) < 186);
}

TEST_CASE("dataset/ of a stream as many are drawn as are wanted, each item equally often") {
  std::array<int, 10> counts{};
  for (uint64_t seed = 0; seed < 10000; ++seed) {
    RandomSelection<size_t> selection(seed, 3);
    for (size_t i = 0; i < counts.size(); ++i) selection.add(i);
    const std::vector<size_t> items = std::move(selection).take();
    REQUIRE(items.size() == 3);
    for (const size_t item : items) ++counts[item];
  }
  // 3000 expected, standard deviation 46.
  for (const int count : counts) CHECK(std::abs(count - 3000) < 276);
}

TEST_CASE("dataset/ a folder gives its data files in the order of names, or else its images") {
  const Folder folder;
  folder.write("b.txt", "two");
  folder.write("a.jsonl", R"({"text":"one"})");
  folder.write("x.png", "X");
  folder.write(".hidden.txt", "no");
  CHECK(texts(*read_dataset(folder.path(), {})) == std::vector<std::string>{"one", "two"});

  const Folder images;
  images.write("b.JPEG", "B");
  images.write("a.png", "A");
  images.write("readme.md", "no");
  const auto dataset = read_dataset(images.path(), {.image_prompt = "What?"});
  REQUIRE(dataset.ok());
  REQUIRE(dataset->documents.size() == 2);
  CHECK(shape_of(dataset->documents[0]) == "user img(a.png) What?");
  CHECK(shape_of(dataset->documents[1]) == "user img(b.JPEG) What?");
  CHECK(dataset->documents[1].origin == "b.JPEG");
  CHECK(mentions(shape_of(read_dataset(images.path(), {})->documents[0]), "Describe this image"));
}

namespace {

using Json = nlohmann::json;

/// A reader of tables that gives these rows and counts how many it was asked for.
struct Rows {
  std::vector<Json> rows;
  int read = 0;
  std::vector<bool> wanted = {};

  TableReader reader() {
    return [this](const std::string&, const TableSink& sink) -> Status {
      std::vector<std::string> columns;
      for (const auto& [name, value] : rows.front().items()) columns.push_back(name);
      SLIM_ASSIGN(wanted, sink.columns(columns));
      for (const Json& row : rows) {
        ++read;
        SLIM_TRY(sink.row(Json::to_cbor(row)));
      }
      return {};
    };
  }
};

}  // namespace

TEST_CASE("dataset/ a row of a table is a sample, with images as bytes") {
  const Folder folder;
  const std::string file = folder.write("t.parquet", "PAR1");
  folder.write("a.png", "A");
  const auto bytes = Json::binary({'h', 'i'});
  const auto read = [&](const Json& row) {
    Rows table{{row}};
    const auto dataset = read_dataset(file, {.parquet = table.reader()});
    return dataset.ok() ? shape_of(dataset->documents[0]) : dataset.status().message();
  };
  CHECK(read({{"image", {{"bytes", bytes}, {"path", "x.png"}}},
              {"query", "q"},
              {"label", {"first", "second"}}}) == "user bytes(hi) q | assistant first");
  CHECK(read({{"image", bytes}, {"question", "q"}, {"answer", nullptr}}) == "user bytes(hi) q");
  CHECK(read({{"image", {{"bytes", nullptr}, {"path", "a.png"}}}, {"query", "q"}}) == "user img(a.png) q");
  CHECK(read({{"images", {{{"bytes", bytes}}, bytes}}, {"query", "<image> or <image>?"}}) ==
        "user bytes(hi)  or  bytes(hi) ?");
  CHECK(read({{"text", "plain"}, {"id", 7}}) == "text:plain");
  CHECK(mentions(read({{"query", "q"}, {"image", Json::binary({})}}), "t.parquet:1: image without a byte"));
  CHECK(mentions(read({{"prompt", "q"}, {"id", 7}}), "found 'id', 'prompt'"));
  CHECK(mentions(read({{"image", bytes}, {"label", "q"}}), "t.parquet: expected a column messages"));
}

TEST_CASE("dataset/ a row that is no CBOR map, claims impossible lengths or nests without end is an error") {
  const Folder folder;
  const std::string file = folder.write("t.parquet", "PAR1");
  const std::vector<uint8_t> no_map = {0x01}, endless(100'000, 0x81),
                             huge = {0xbb, 0x87, 0xdd, 0x96, 0x9c, 0x73, 0x6e, 0x74, 0x75};
  for (const auto& row : {no_map, endless, huge}) {
    const TableReader reader = [&](const std::string&, const TableSink& sink) -> Status {
      SLIM_TRY(sink.columns({"text"}).status());
      return sink.row(row);
    };
    const auto dataset = read_dataset(file, {.parquet = reader});
    REQUIRE_FALSE(dataset.ok());
    CHECK(mentions(dataset.status().message(), "no CBOR map"));
  }
}

TEST_CASE("dataset/ of a table only the columns and rows that are needed are read") {
  const Folder folder;
  const std::string file = folder.write("t.parquet", "PAR1");
  Rows table{{{{"id", 1}, {"text", "a"}}, {{"id", 2}, {"text", nullptr}}, {{"id", 3}, {"text", "c"}}}};
  CHECK(
      mentions(read_dataset(file, {.parquet = table.reader()}).status().message(), "t.parquet:2: expected"));
  CHECK(table.wanted == std::vector<bool>{false, true});
  table.read = 0;
  CHECK(read_dataset(file, {.num_samples = 1, .parquet = table.reader()})->documents.size() == 1);
  CHECK(table.read == 1);
  const auto skipping = read_dataset(file, {.skip_bad_samples = true, .parquet = table.reader()});
  CHECK(texts(*skipping) == std::vector<std::string>{"a", "c"});
  CHECK(skipping->skipped.size() == 1);
  const TableReader broken = [](const std::string&, const TableSink&) {
    return Status(Code::kCorrupt, "no footer");
  };
  CHECK(read_dataset(file, {.parquet = broken}).status().message() == "no footer");
}

TEST_CASE("dataset/ a text file may be one document") {
  const Folder folder;
  const std::string file = folder.write("d.txt", "\xEF\xBB\xBFone\n\ntwo\n");
  const auto dataset = read_dataset(file, {.text = TextUnit::kFile});
  REQUIRE(dataset.ok());
  CHECK(texts(*dataset) == std::vector<std::string>{"one\n\ntwo\n"});
  CHECK(dataset->documents[0].origin == "d.txt");
  CHECK(mentions(read_dataset(folder.write("e.txt", " \n"), {.text = TextUnit::kFile}).status().message(),
                 "no document"));
  CHECK(mentions(read_dataset(folder.write("f.txt", "a\n\xC3"), {.text = TextUnit::kFile}).status().message(),
                 "f.txt: not UTF-8"));
}

TEST_CASE("dataset/ the sample data of the repository is readable") {
  CHECK(read_dataset("tests/data/samples/calib.jsonl", {})->documents.size() > 100);
  CHECK(read_dataset("tests/data/samples/eval.jsonl", {.num_samples = 5})->documents.size() == 5);
  CHECK(read_dataset("tests/data/samples/calib_images", {})->documents.size() == 30);
}
