#pragma once
#include <algorithm>
#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

namespace slim {

/// SplitMix64 (Steele, Lea, Flood 2014): the same numbers on every platform, which the standard library's
/// distributions do not promise.
class SplitMix64 {
 public:
  explicit SplitMix64(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }

 private:
  uint64_t state_;
};

/// Draws `count` items of a stream of unknown length in random order, every selection as likely as any other, and
/// holds no more than that. Each item gets a random number; the smallest win.
template <class T>
class RandomSelection {
 public:
  /// count 0: all of them.
  RandomSelection(uint64_t seed, size_t count) : random_(seed), count_(count) {}

  void add(T item) {
    kept_.push_back({random_.next(), seen_++, std::move(item)});
    std::push_heap(kept_.begin(), kept_.end());
    if (count_ == 0 || kept_.size() <= count_) return;
    std::pop_heap(kept_.begin(), kept_.end());
    kept_.pop_back();
  }
  std::vector<T> take() && {
    std::sort(kept_.begin(), kept_.end());
    std::vector<T> items;
    for (Entry& entry : kept_) items.push_back(std::move(entry.item));
    return items;
  }

 private:
  struct Entry {
    uint64_t draw, place;  ///< the place decides between equal draws
    T item;
    bool operator<(const Entry& other) const {
      return std::tie(draw, place) < std::tie(other.draw, other.place);
    }
  };

  SplitMix64 random_;
  size_t count_;
  uint64_t seen_ = 0;
  std::vector<Entry> kept_;
};

}  // namespace slim
