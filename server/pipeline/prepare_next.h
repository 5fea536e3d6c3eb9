#ifndef C3PO_SERVER_PIPELINE_PREPARE_NEXT_H_
#define C3PO_SERVER_PIPELINE_PREPARE_NEXT_H_

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "server/types/model_runner.h"

namespace c3po {

// Goes on with the state of the first case of `spec` that has none, by about `row_layers`; once it is whole, it is in
// spec.states. `preparation` is what stands between two calls: null, or a state that is half made.
inline absl::Status PrepareNext(ModelRunner& model, const MovingPart& moving, int64_t row_layers, ObjectiveSpec& spec,
                                std::unique_ptr<NeighborPreparation>& preparation) {
  if (!preparation) {
    auto begun = model.NewPreparation(spec.cases[spec.states.size()], moving);
    if (!begun.ok()) return begun.status();
    preparation = *std::move(begun);
  }
  const absl::StatusOr<bool> whole = preparation->Advance(row_layers);
  if (!whole.ok()) return whole.status();
  if (!*whole) return absl::OkStatus();
  spec.states.push_back(preparation->state());
  preparation.reset();
  return absl::OkStatus();
}

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_PREPARE_NEXT_H_
