#pragma once
#include <map>
#include <string>
#include <string_view>

#include "slim/format.hpp"
#include "types.h"

/// quant_model_description.json: one flat object that names the type of every tensor, beside keys without a dot about
/// the whole.
namespace slim::ascend {

/// The text of the file for an output.
Result<std::string> write_description(const OutputModel&);
/// The last type of the output's schemes: "W8A8S".
Result<Type> model_type(const OutputModel&);

class Description {
 public:
  /// True if the text looks like one.
  static bool recognises(std::string_view text);
  static Result<Description> parse(std::string_view text);
  /// Every tensor is described, and every description has its tensor.
  Status check(const std::map<std::string, TensorSpec>& tensors) const;
  /// "FLOAT" for tensors that are not quantized.
  const std::map<std::string, std::string>& types() const { return types_; }

 private:
  std::map<std::string, std::string> types_;
};

}  // namespace slim::ascend
