#include "common/chat/json_value.hpp"

#include <nlohmann/json.hpp>
#include <utility>

namespace slim::model::jinja {
namespace {

using nlohmann::json;

/// Builds values as they are read: nlohmann's own objects sort their keys, or look each new one up among all others.
class ValueBuilder final : public nlohmann::json_sax<json> {
 public:
  Value take() { return open_.empty() ? std::move(whole_) : Value::none(); }

  bool null() override { return put(Value::none()); }
  bool boolean(bool value) override { return put(Value::boolean(value)); }
  bool number_integer(number_integer_t value) override { return put(Value::integer(value)); }
  bool number_unsigned(number_unsigned_t value) override {
    return std::in_range<int64_t>(value) ? put(Value::integer(static_cast<int64_t>(value)))
                                         : put(Value::decimal(std::to_string(value)));
  }
  bool number_float(number_float_t, const string_t& text) override { return put(Value::decimal(text)); }
  bool string(string_t& value) override { return put(Value::string(std::move(value))); }
  bool binary(binary_t&) override { return false; }
  bool key(string_t& name) override {
    open_.back().keys.push_back(std::move(name));
    return true;
  }
  bool start_object(std::size_t) override { return open(); }
  bool start_array(std::size_t) override { return open(); }
  bool end_object() override {
    Container container = std::move(open_.back());
    open_.pop_back();
    Dict entries;
    for (size_t i = 0; i < container.items.size(); ++i)
      entries.emplace_back(std::move(container.keys[i]), std::move(container.items[i]));
    return put(Value::dict(std::move(entries)));
  }
  bool end_array() override {
    Container container = std::move(open_.back());
    open_.pop_back();
    return put(Value::list(std::move(container.items)));
  }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception&) override {
    return false;
  }

 private:
  struct Container {
    std::vector<std::string> keys;  ///< of an object
    List items;
  };
  bool open() {
    open_.emplace_back();
    return open_.size() <= static_cast<size_t>(Value::kMaxNesting);
  }
  bool put(Value value) {
    if (open_.empty())
      whole_ = std::move(value);
    else
      open_.back().items.push_back(std::move(value));
    return true;
  }

  std::vector<Container> open_;
  Value whole_ = Value::none();
};

}  // namespace

Value value_of_json(std::string_view text) {
  ValueBuilder builder;
  return json::sax_parse(text, &builder) ? builder.take() : Value::none();
}

}  // namespace slim::model::jinja
