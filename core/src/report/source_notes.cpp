#include "report/source_notes.h"

#include "checkpoint/checksums.h"

namespace slim {
namespace {

Status note_copy(const Checkpoint& checkpoint, const LeftOut& left, Notes& notes) {
  SLIM_ASSIGN(const uint64_t copy, tensor_checksum(checkpoint, left.tensor));
  SLIM_ASSIGN(const uint64_t used, tensor_checksum(checkpoint, left.copy_of));
  if (copy == used)
    notes.note("a second copy of the embedding left out", left.tensor, "");
  else
    notes.note("a tied head that differs from the embedding left out: engines use the embedding", left.tensor,
               "transformers 5 would use it; set tie_word_embeddings = false in config.json to keep it");
  return {};
}

}  // namespace

Status note_source(const Model& model, Notes& notes) {
  const WeightSource& weights = *model.weights;
  const Checkpoint& checkpoint = weights.checkpoint();
  if (weights.quantized())
    notes.note("the source was quantized before: its rounding stays", checkpoint.folder(),
               weights.format_id());
  if (!weights.stale_quantization().empty())
    notes.note("quantization_config passed over: every weight is in float", checkpoint.folder(),
               weights.stale_quantization());
  for (const std::string& name : model.plan.beside) {
    const TensorSpec& spec = weights.logical().at(name);
    notes.note("tensors beside the model copied", name,
               std::string(dtype_name(spec.dtype)) + " " + shape_string(spec.shape));
  }
  for (const LeftOut& left : model.plan.left_out) {
    if (left.copy_of.empty())
      notes.note("tensors left out: engines compute them", left.tensor, "");
    else if (checkpoint.tensors().contains(left.tensor) && checkpoint.tensors().contains(left.copy_of))
      SLIM_TRY(note_copy(checkpoint, left, notes));
  }
  return {};
}

}  // namespace slim
