#include "util/strict_json.h"

#include <set>
#include <string>
#include <vector>

namespace slim {
namespace {

using Json = nlohmann::ordered_json;

// Events instead of the library's own document builder: that one keeps the last of two equal keys without a
// word.
class Builder final : public nlohmann::json_sax<Json> {
 public:
  explicit Builder(int max_depth) : max_depth_(max_depth) {}

  bool null() override { return add(Json()); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(value); }
  bool number_unsigned(number_unsigned_t value) override { return add(value); }
  bool number_float(number_float_t value, const string_t&) override { return add(value); }
  bool string(string_t& value) override { return add(std::move(value)); }
  bool binary(binary_t&) override { return fail("binary value"); }
  bool start_object(std::size_t) override { return open(Json::object()); }
  bool start_array(std::size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    if (!levels_.back().keys.insert(name).second)
      return fail("key " + Json(name).dump() + " stands twice in one object");
    levels_.back().key = std::move(name);
    return true;
  }

  bool parse_error(std::size_t position, const std::string& token,
                   const nlohmann::detail::exception&) override {
    return fail(
        "invalid JSON at byte " + std::to_string(position) +
        (token.empty()
             ? ""
             : " near " + Json(token.substr(0, 40)).dump(-1, ' ', true, Json::error_handler_t::replace)));
  }

  const std::string& error() const { return error_; }
  Json take() { return std::move(root_); }

 private:
  struct Level {
    Json value;
    std::set<std::string> keys;
    std::string key;
  };

  bool fail(std::string error) {
    error_ = std::move(error);
    return false;
  }
  bool add(Json value) {
    if (levels_.empty()) {
      root_ = std::move(value);
    } else if (Level& level = levels_.back(); level.value.is_array()) {
      level.value.push_back(std::move(value));
    } else {
      // Not operator[]: on an ordered object that searches linearly, and the key is known to be new.
      level.value.get_ref<Json::object_t&>().emplace_back(std::move(level.key), std::move(value));
    }
    return true;
  }
  bool open(Json value) {
    if (static_cast<int>(levels_.size()) == max_depth_)
      return fail("nested deeper than " + std::to_string(max_depth_) + " levels");
    levels_.push_back({std::move(value), {}, {}});
    return true;
  }
  bool close() {
    Json value = std::move(levels_.back().value);
    levels_.pop_back();
    return add(std::move(value));
  }

  int max_depth_;
  Json root_;
  std::vector<Level> levels_;
  std::string error_;
};

}  // namespace

Result<Json> parse_strict_json(std::string_view text, int max_depth) {
  Builder builder(max_depth);
  if (!Json::sax_parse(text, &builder)) return Status(Code::kCorrupt, builder.error());
  return builder.take();
}

}  // namespace slim
