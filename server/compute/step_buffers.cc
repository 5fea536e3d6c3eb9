#include "server/compute/step_buffers.h"

namespace c3po {

OwnedMatrix StepBuffers::Take(Backend& backend, OwnedMatrix& kept, ElementType type, int64_t rows, int64_t columns) {
  if (rows == 0) return {};
  if (rows * columns * BytesOf(type) > kKeptBytesMax) return backend.Allocate(type, rows, columns);
  if (kept.rows() < rows) {
    kept = {};  // What was there makes room first.
    kept = backend.Allocate(type, rows, columns);
  }
  return kept.Rows(0, rows);
}

StepMatrices StepBuffers::Place(Backend& backend, const StepInputs& inputs, int64_t hidden, int64_t experts,
                                int64_t vocabulary) {
  const int64_t rows = inputs.rows();
  StepMatrices matrices;
  matrices.hidden = Take(backend, hidden_, backend.info().activations, rows, hidden);
  matrices.probabilities =
      Take(backend, probabilities_, ElementType::kFloat32, inputs.probabilities ? rows : 0, experts);
  matrices.logits =
      Take(backend, logits_, ElementType::kFloat32, static_cast<int64_t>(inputs.head_rows.size()), vocabulary);
  matrices.scores = Take(backend, scores_, ElementType::kFloat32, static_cast<int64_t>(inputs.targets.size()), 2);
  return matrices;
}

}  // namespace c3po
