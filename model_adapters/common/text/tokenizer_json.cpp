#include "common/text/tokenizer_json.hpp"

namespace slim::model {
namespace {

using nlohmann::json;

/// Receives the parser's events. false from a handler stops the parse; status_ says why.
class Handler {
 public:
  explicit Handler(TokenizerJson& out) : out_(out) {}
  Status status() const { return status_; }

  bool null() { return scalar(nullptr, "null"); }
  bool boolean(bool v) { return scalar(v, "a boolean"); }
  bool number_unsigned(uint64_t v) {
    if (part_ == Part::kPiece) return score(static_cast<double>(v));
    if (part_ != Part::kVocab) return scalar(v, "a number");
    if (v >= static_cast<uint64_t>(kMaxVocabulary))
      return fail(where() + ": id " + std::to_string(v) + ", expected at most " +
                  std::to_string(kMaxVocabulary - 1));
    out_.vocab.push_back({token_, static_cast<int64_t>(v)});
    return true;
  }
  bool number_integer(int64_t v) {
    return part_ == Part::kPiece ? score(static_cast<double>(v)) : scalar(v, "a negative number");
  }
  bool number_float(double v, const std::string&) {
    return part_ == Part::kPiece ? score(v) : scalar(v, "a fraction");
  }
  bool binary(json::binary_t&) { return fail("binary data"); }
  bool string(std::string& v) {
    if (part_ == Part::kMerges) return merge(v);
    if (part_ == Part::kMergePair) {
      if (pair_size_ == 2) return fail(merge_name() + ": expected two parts");
      pair_[pair_size_++] = store(v);
      return true;
    }
    if (part_ == Part::kPiece) {
      if (pair_size_++ != 0) return fail(where() + ": expected a text and a score");
      token_ = store(v);
      out_.vocab.push_back({token_, static_cast<int64_t>(out_.vocab.size())});
      return true;
    }
    return scalar(std::move(v), "a string");
  }
  bool key(std::string& v) {
    if (part_ == Part::kVocab) {
      token_ = store(v);
      return true;
    }
    if (containers_.back()->contains(v)) return fail("duplicate key '" + v + "'");
    key_ = std::move(v);
    return true;
  }
  bool start_object(size_t) {
    if (part_ != Part::kRest) return fail(where() + ": expected no object");
    if (!open(json::object())) return false;
    if (is_model_list("vocab")) part_ = Part::kVocab;
    return true;
  }
  bool start_array(size_t) {
    if (part_ == Part::kMerges) {
      part_ = Part::kMergePair;
      pair_size_ = 0;
      return true;
    }
    if (part_ == Part::kPieces) {
      if (out_.vocab.size() >= static_cast<size_t>(kMaxVocabulary)) return fail("model.vocab: too long");
      part_ = Part::kPiece;
      pair_size_ = 0;
      return true;
    }
    if (part_ != Part::kRest) return fail(where() + ": expected no list");
    if (!open(json::array())) return false;
    if (is_model_list("merges")) part_ = Part::kMerges;
    if (is_model_list("vocab")) part_ = Part::kPieces;
    return true;
  }
  bool end_object() { return close(); }
  bool end_array() {
    if (part_ == Part::kPiece) {
      if (pair_size_ != 2) return fail(where() + ": expected a text and a score");
      part_ = Part::kPieces;
      return true;
    }
    if (part_ != Part::kMergePair) return close();
    if (pair_size_ != 2) return fail(merge_name() + ": expected two parts");
    out_.merges.emplace_back(pair_[0], pair_[1]);
    part_ = Part::kMerges;
    return true;
  }
  template <class Exception>
  bool parse_error(size_t position, const std::string&, const Exception&) {
    return fail("not valid JSON at byte " + std::to_string(position));
  }

 private:
  enum class Part : uint8_t { kRest, kVocab, kPieces, kPiece, kMerges, kMergePair };
  static constexpr size_t kMaxDepth = 64;

  bool fail(const std::string& what) {
    status_ = Status(Code::kCorrupt, what);
    return false;
  }
  std::string merge_name() const { return "model.merges[" + std::to_string(out_.merges.size()) + "]"; }
  std::string where() const {
    if (part_ == Part::kVocab) return "model.vocab['" + std::string(out_.text(token_)) + "']";
    const bool piece = part_ == Part::kPieces || part_ == Part::kPiece;
    return piece ? "model.vocab[" + std::to_string(out_.scores.size()) + "]" : merge_name();
  }
  TokenizerJson::Span store(std::string_view v) { return model::store(out_, v); }
  /// A piece of a Unigram vocabulary is a list of its text and its score.
  bool score(double v) {
    if (pair_size_ != 1) return fail(where() + ": found a number, expected a text and a score");
    ++pair_size_;
    out_.scores.push_back(v);
    return true;
  }
  bool merge(std::string_view v) {
    size_t space = v.find(' ');
    if (space == std::string_view::npos || v.find(' ', space + 1) != std::string_view::npos)
      return fail(merge_name() + ": expected two parts with a space between them, found '" + std::string(v) +
                  "'");
    auto first = store(v.substr(0, space));
    out_.merges.emplace_back(first, store(v.substr(space + 1)));
    return true;
  }
  bool scalar(json value, const char* kind) {
    if (part_ != Part::kRest) return fail(where() + ": found " + kind);
    put(std::move(value));
    return true;
  }
  json* put(json value) {
    if (containers_.empty()) return &(out_.rest = std::move(value));
    json& top = *containers_.back();
    if (top.is_object()) return &(top[key_] = std::move(value));
    top.push_back(std::move(value));
    return &top.back();
  }
  bool open(json value) {
    if (containers_.size() == kMaxDepth) return fail("nested deeper than " + std::to_string(kMaxDepth));
    containers_.push_back(put(std::move(value)));  // the parent does not grow while a child is open
    keys_.push_back(key_);
    return true;
  }
  bool close() {
    part_ = Part::kRest;
    containers_.pop_back();
    keys_.pop_back();
    return true;
  }
  /// Whether the container just opened is /model/<name>; keys_ holds the keys of the open containers, the root's is empty.
  bool is_model_list(std::string_view name) const {
    return keys_.size() == 3 && containers_[0]->is_object() && keys_[1] == "model" && keys_[2] == name &&
           containers_[1]->is_object();
  }

  TokenizerJson& out_;
  Status status_;
  std::vector<json*> containers_;
  std::vector<std::string> keys_;
  std::string key_;
  Part part_ = Part::kRest;
  TokenizerJson::Span token_{};
  std::array<TokenizerJson::Span, 2> pair_{};
  size_t pair_size_ = 0;
};

}  // namespace

TokenizerJson::Span store(TokenizerJson& json, std::string_view text) {
  const TokenizerJson::Span span{static_cast<uint32_t>(json.strings.size()),
                                 static_cast<uint32_t>(text.size())};
  json.strings += text;
  return span;
}

Result<TokenizerJson> parse_tokenizer_json(std::string_view text) {
  if (text.size() > INT32_MAX) return Status(Code::kCorrupt, "larger than 2 GiB");
  TokenizerJson out;
  out.strings.reserve(text.size() / 2);
  Handler handler(out);
  if (!json::sax_parse(text, &handler)) return handler.status();
  if (!out.rest.is_object()) return Status(Code::kCorrupt, "expected a JSON object");
  return out;
}

}  // namespace slim::model
