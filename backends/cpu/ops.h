#pragma once
#include <ATen/core/dispatch/Dispatcher.h>

#include <string>
#include <vector>

namespace slim::cpu {

/// Names of the `slim::` operators that have a kernel here.
const std::vector<std::string>& accelerated_ops();

/// Instruction sets that this processor can run, best first; the last is "portable".
std::vector<std::string> instruction_sets();
/// Chooses the kernels of all further calls: one of instruction_sets().
void use_instruction_set(const std::string& name);

/// Calls the core's reference kernel of an operator, for shapes that the kernel here does not serve.
template <class Signature, class... Arguments>
auto reference(const char* name, Arguments&&... arguments) {
  // No backend registers kernels for Meta, so that its entry is the reference, which works for any device.
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>().redispatch(
      c10::DispatchKeySet(c10::DispatchKey::Meta), std::forward<Arguments>(arguments)...);
}

}  // namespace slim::cpu
