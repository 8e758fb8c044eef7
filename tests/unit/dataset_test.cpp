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
  CHECK(mentions(read_line(R"({"messages":[{"role":"system","content":"s"}],"image":"a.png"})"), "without a user"));
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
  CHECK(mentions(read({{"title", "q"}, {"id", 7}}), "found 'id', 'title'"));
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

TEST_CASE("dataset/ every part of a record is used as its users mean it") {
  CHECK(read_line(R"({"system_prompt":"s","question":"q","answer":"a"})") ==
        "system s | user q | assistant a");
  CHECK(read_line(
            R"({"system":"s","conversations":[{"from":"human","value":"q"},{"from":"gpt","value":"a"}]})") ==
        "system s | user q | assistant a");
  CHECK(read_line(R"({"instruction":"i","context":"c","response":"r"})") == "user i\n\nc | assistant r");
  CHECK(read_line(R"({"query":"q","response":"r","history":[["a","b"]]})") ==
        "user a | assistant b | user q | assistant r");
  CHECK(read_line(R"({"prompt":"p","completion":"c"})") == "user p | assistant c");
  CHECK(read_line(R"({"prompt":[{"role":"user","content":"p"}]})") == "user p");
  CHECK(read_line(R"({"image":"a.png","caption":["a square","a box"]})") ==
        "user img(a.png) Describe this image in detail. | assistant a square");
  CHECK(read_line(R"({"file_name":"a.png","text":"a square"})", {.image_prompt = "What?"}) ==
        "user img(a.png) What? | assistant a square");
  CHECK(read_line(R"({"messages":[{"role":"developer","content":"d"},{"role":"user","content":"u"}]})") ==
        "system d | user u");
  CHECK(read_line(R"({"theirs":"t"})", {.columns = {{"theirs", "text"}}}) == "text:t");
}

TEST_CASE("dataset/ functions, their calls and thoughts keep their order and text") {
  const Folder folder;
  const auto document = [&](std::string_view line) {
    const auto dataset = read_dataset(folder.write("d.jsonl", line), {});
    INFO(dataset.status().message());
    REQUIRE(dataset.ok());
    return dataset->documents.at(0);
  };
  const Document chat = document(
      R"({"tools":[{"type":"function","b":1.50,"a":"x\"y"}],"messages":[{"role":"user","content":"u"},)"
      R"({"role":"assistant","content":null,"reasoning_content":"hm","tool_calls":[{"name":"f","arguments":{"z":[],"a":null}}]},)"
      R"({"role":"tool","content":"r"}]})");
  CHECK(chat.tools == R"([{"type": "function", "b": 1.50, "a": "x\"y"}])");
  CHECK(chat.messages[1].tool_calls == R"([{"name": "f", "arguments": {"z": [], "a": null}}])");
  CHECK(chat.messages[1].reasoning == "hm");
  CHECK(chat.messages[1].content.empty());
  const Document shared = document(
      R"({"tools":"[{\"name\": \"f\"}]","conversations":[{"from":"human","value":"u"},)"
      R"({"from":"function_call","value":"{\"name\": \"f\", \"arguments\": {}}"},{"from":"observation","value":"o"}]})");
  CHECK(shared.tools == R"([{"name": "f"}])");
  CHECK(shared.messages[1].tool_calls ==
        R"([{"type": "function", "function": {"name": "f", "arguments": {}}}])");
  CHECK(shared.messages[2].role == "tool");
}

TEST_CASE("dataset/ what is passed over is told") {
  const Folder folder;
  const auto dataset = read_dataset(folder.write("d.jsonl", R"({"id":1,"text":"a"})"
                                                            "\n"
                                                            R"({"id":2,"text":""})"
                                                            "\n"
                                                            R"({"id":3,"source":"s","text":"b"})"),
                                    {});
  REQUIRE(dataset.ok());
  CHECK(texts(*dataset) == std::vector<std::string>{"a", "b"});
  CHECK(dataset->remarks ==
        std::vector<std::string>{"keys that are not read, with their samples: id (3), source (1)",
                                 "1 empty samples passed over"});
}

TEST_CASE("dataset/ JSON files hold objects in a list, on lines, or one behind the other") {
  const Folder folder;
  for (const char* text : {R"([{"text":"a"}, {"text":"}{]"}])", "{\"text\":\"a\"}\n{\"text\":\"}{]\"}\n",
                           "\xEF\xBB\xBF[\n {\n \"text\": \"a\"\n },\n {\"text\": \"}{]\"}\n]\n",
                           R"({"text":"a"}{"text":"}{]"})"}) {
    const auto dataset = read_dataset(folder.write("d.json", text), {});
    INFO(dataset.status().message());
    REQUIRE(dataset.ok());
    CHECK(texts(*dataset) == std::vector<std::string>{"a", "}{]"});
  }
  CHECK(read_dataset(folder.write("d.json", "[\n\n{\"text\":\"a\"}]"), {})->documents[0].origin ==
        "d.json:3");
  CHECK(mentions(read_dataset(folder.write("d.json", R"([{"text":"a"})"
                                                     "\n, 3]"),
                              {})
                     .status()
                     .message(),
                 "line 2: expected JSON objects"));
  CHECK(mentions(read_dataset(folder.write("d.json", R"([{"text":"a"})"
                                                     "\n,{\"text\""),
                              {})
                     .status()
                     .message(),
                 "inside of an object"));
}

TEST_CASE("dataset/ of a folder the records, else the images, else the texts are read, from subfolders too") {
  const Folder images;
  images.write("a/one.png", "A");
  images.write("LICENSE.txt", "free");
  images.write("notes.txt", "n");
  const auto pictures = read_dataset(images.path(), {.image_prompt = "What?"});
  REQUIRE(pictures.ok());
  CHECK(shape_of(pictures->documents.at(0)) == "user img(one.png) What?");
  REQUIRE(pictures->remarks.size() == 1);
  CHECK(mentions(pictures->remarks[0], "1 text files beside them are not read: notes.txt"));

  const Folder splits;
  splits.write("README.txt", "about");
  splits.write("data/train-0.jsonl", R"({"text":"train"})");
  splits.write("data/test-0.jsonl", R"({"text":"test"})");
  CHECK(texts(*read_dataset(splits.path(), {})) == std::vector<std::string>{"train"});
  CHECK(texts(*read_dataset(splits.path(), {.split = "test"})) == std::vector<std::string>{"test"});
  CHECK(mentions(read_dataset(splits.path(), {.split = "dev"}).status().message(), "there are: test, train"));
}

TEST_CASE("dataset/ UTF-16 and damaged compression are named") {
  const Folder folder;
  CHECK(mentions(
      read_dataset(folder.write("d.jsonl", std::string_view("\xFF\xFE{\0", 4)), {}).status().message(),
      "UTF-16"));
  CHECK(mentions(read_dataset(folder.write("d.jsonl.gz", "no gzip"), {}).status().message(),
                 "is the file whole?"));
  CHECK(mentions(read_dataset(folder.write("d.jsonl.zst", "no zstd"), {}).status().message(),
                 "is the file whole?"));
}
