#include "server/compute/step_buffers.h"

#include <algorithm>

namespace c3po {

OwnedMatrix StepBuffers::Take(Backend& backend, OwnedMatrix& kept, ElementType type, int64_t rows, int64_t columns,
                              int64_t room) {
  if (rows == 0) return {};
  room = std::max(rows, room);
  if (room * columns * BytesOf(type) > kKeptBytesMax) return backend.Allocate(type, room, columns).Rows(0, rows);
  if (kept.rows() < room) {
    kept = {};  // What was there makes room first.
    kept = backend.Allocate(type, room, columns);
  }
  return kept.Rows(0, rows);
}

StepMatrices StepBuffers::Place(Backend& backend, const StepInputs& inputs, int64_t hidden, int64_t experts,
                                int64_t vocabulary, const StepRoom& room) {
  const int64_t rows = inputs.rows();
  StepMatrices matrices;
  matrices.hidden = Take(backend, hidden_, backend.info().activations, rows, hidden, room.rows);
  matrices.probabilities =
      Take(backend, probabilities_, ElementType::kFloat32, inputs.probabilities ? rows : 0, experts, room.rows);
  matrices.logits = Take(backend, logits_, ElementType::kFloat32, static_cast<int64_t>(inputs.head_rows.size()),
                         vocabulary, room.head_rows);
  matrices.scores = Take(backend, scores_, ElementType::kFloat32, static_cast<int64_t>(inputs.targets.size()), 2);
  return matrices;
}

}  // namespace c3po
