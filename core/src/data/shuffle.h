#pragma once
#include <cstdint>
#include <utility>
#include <vector>

namespace slim {

/// SplitMix64 (Steele, Lea, Flood 2014): the same numbers on every platform, which std::shuffle does not
/// promise.
class SplitMix64 {
 public:
  explicit SplitMix64(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  /// Uniform in [0, bound), bound > 0: draws beyond the last full multiple of `bound` are thrown away.
  uint64_t below(uint64_t bound) {
    const uint64_t first_fair = (0 - bound) % bound;
    uint64_t draw = next();
    while (draw < first_fair) draw = next();
    return draw % bound;
  }

 private:
  uint64_t state_;
};

/// Fisher-Yates.
template <class T>
void shuffle(std::vector<T>& items, uint64_t seed) {
  SplitMix64 random(seed);
  for (size_t left = items.size(); left > 1; --left) std::swap(items[left - 1], items[random.below(left)]);
}

}  // namespace slim
