#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "slim/plan.hpp"
#include "slim/status.hpp"

/// Sums over calibration tokens, collected at ports while a block runs. A statistic is owned by the core and used from
/// one thread at a time. All are plain sums, so batches, machines and resumed runs merge exactly.
namespace slim {

using TensorMap = std::map<std::string, at::Tensor, std::less<>>;  ///< tensors by name

/// Something that is known of the rows that passed a port.
class SLIM_API Statistic {
 public:
  virtual ~Statistic();
  /// x [tokens, features], any float dtype, on the compute device; zero rows are allowed.
  virtual void update(const at::Tensor& x) = 0;
  /// Adds `weight` times another statistic of the same type. Used for pooled ports and for shrinking an expert's
  /// statistic toward its layer's; token counts scale too, so means mix as (n_e m_e + w n m) / (n_e + w n).
  virtual void merge(const Statistic& other, double weight) = 0;
  /// Follows x -> x / s exactly (s [features], fp32), or returns false: the statistic is stale and must be collected again.
  virtual bool rescale(const at::Tensor& s) = 0;
  /// Whether it serves the error of layers' outputs. Then update() is given x / rms(x) row by row, unless the run says
  /// `normalize_tokens = false`: the sum of ‖ΔW x‖² over tokens becomes that of ‖ΔW x‖² / ‖x‖². Otherwise the few tokens that are far larger
  /// than all others, as before o_proj and down_proj, decide alone, although the next norm makes a token's error relative to its size.
  /// rescale() keeps the weights that tokens had when they were collected.
  virtual bool normalizes_tokens() const { return false; }
  /// Estimates the floating-point operations of update() for so many rows, for the time that `slim plan` foretells. 0: too few to matter.
  virtual double operations(double tokens) const { return 0; }
  /// Estimates the bytes that it holds after so many rows of numbers of `element_bytes` each, for memory plans and `--max-memory`. -1: not
  /// told; the core then gives a few rows to a copy and extrapolates the size of its state().
  virtual int64_t bytes(int64_t tokens, int64_t element_bytes) const { return -1; }
  /// An independent copy.
  virtual std::unique_ptr<Statistic> clone() const = 0;
  /// Everything needed to go on in another process.
  virtual TensorMap state() const = 0;
  /// Back to what state() told; kCorrupt if it does not fit.
  virtual Status restore(const TensorMap&) = 0;

  double tokens = 0;  ///< rows seen; fractional after a weighted merge
};

/// Sum of x xᵀ over tokens, normalized as Statistic::normalizes_tokens() says: `sum` [features, features] fp32, symmetric (both triangles filled on read).
class SLIM_API Gram final : public Statistic {
 public:
  static constexpr std::string_view kId = "slim.gram";  ///< for find()
  explicit Gram(int64_t features) : features_(features) {}  ///< of the port
  void update(const at::Tensor& x) override;
  void merge(const Statistic& other, double weight) override;
  bool rescale(const at::Tensor& s) override;
  bool normalizes_tokens() const override { return true; }
  double operations(double tokens) const override {
    return tokens * static_cast<double>(features_) * static_cast<double>(features_);
  }
  int64_t bytes(int64_t, int64_t) const override { return features_ * features_ * 4; }
  std::unique_ptr<Statistic> clone() const override;
  TensorMap state() const override;
  Status restore(const TensorMap&) override;
  /// E[x xᵀ] [features, features] fp32; zeros when no token was seen.
  at::Tensor mean() const;
  /// Σ x xᵀ, both triangles; undefined when no token was seen. Updates write the upper one only: the first call after one mirrors it.
  const at::Tensor& sum() const;

 private:
  int64_t features_;
  at::Tensor sum_;
  mutable bool mirrored_ = true;  ///< the lower triangle is that of the upper one
};

/// Per-channel moments in one pass: sums of |x| and x², and the extremes; all [features] fp32.
class SLIM_API ChannelMoments final : public Statistic {
 public:
  static constexpr std::string_view kId = "slim.channel_moments";  ///< for find()
  explicit ChannelMoments(int64_t features) : features_(features) {}  ///< of the port
  void update(const at::Tensor& x) override;
  void merge(const Statistic& other, double weight) override;
  bool rescale(const at::Tensor& s) override;
  std::unique_ptr<Statistic> clone() const override;
  TensorMap state() const override;
  Status restore(const TensorMap&) override;
  int64_t bytes(int64_t, int64_t) const override { return 4 * features_ * 4; }
  at::Tensor mean_abs() const;     ///< E|x|
  at::Tensor mean_square() const;  ///< E[x²]
  at::Tensor min() const;          ///< 0 when no token was seen
  at::Tensor max() const;          ///< 0 when no token was seen
  at::Tensor abs_max() const;      ///< max|x|

 private:
  int64_t features_;
  at::Tensor sum_abs_, sum_square_, min_, max_;
};

/// The activations themselves (normalized likewise), at most `capacity` rows kept evenly over all tokens: [kept, features] in x's dtype.
/// Exact losses ‖ΔW X‖² where that is cheaper than a Gram matrix (few tokens, wide layer).
class SLIM_API ActivationRows final : public Statistic {
 public:
  static constexpr std::string_view kId = "slim.activation_rows";  ///< for find()
  ActivationRows(int64_t features, int64_t capacity) : features_(features), capacity_(capacity) {}  ///< rows to keep at most
  void update(const at::Tensor& x) override;
  void merge(const Statistic& other, double weight) override;
  bool rescale(const at::Tensor& s) override;
  bool normalizes_tokens() const override { return true; }
  std::unique_ptr<Statistic> clone() const override;
  TensorMap state() const override;
  Status restore(const TensorMap&) override;
  int64_t bytes(int64_t tokens, int64_t element_bytes) const override {
    return (tokens < capacity_ ? tokens : capacity_) * features_ * element_bytes;
  }
  /// [kept, features]; kept == tokens while tokens <= capacity.
  at::Tensor rows() const;

 private:
  int64_t features_, capacity_, stride_ = 1, seen_ = 0;
  std::vector<at::Tensor> chunks_;
};

/// What an algorithm asks the core to collect. De-duplicated by (port, id): q/k/v, and two algorithms, share one Gram.
class SLIM_API Observations {
 public:
  virtual ~Observations();
  /// A statistic of the port; `make` is called once, if nobody else has asked for this id.
  virtual void add(PortId, std::string_view id, std::function<std::unique_ptr<Statistic>()> make) = 0;
  /// add() of a type, with the arguments of its constructor.
  template <class S, class... Args>
  void want(PortId port, Args... args) {
    add(port, S::kId, [=] { return std::make_unique<S>(args...); });
  }
  /// Keep this region's inputs, so that BlockContext::loss can run it again.
  virtual void keep_inputs(RegionId) = 0;
  /// Calibration tokens of the whole run (an estimate is enough: it chooses between Gram and rows). 0: data-free.
  virtual int64_t expected_tokens() const = 0;
};

}  // namespace slim
