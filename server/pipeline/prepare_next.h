#ifndef C3PO_SERVER_PIPELINE_PREPARE_NEXT_H_
#define C3PO_SERVER_PIPELINE_PREPARE_NEXT_H_

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "index/base/status_macros.h"
#include "server/types/model_runner.h"

namespace c3po {

// What stands between two calls: `preparation`, null, or a state that is half made.

// Begins the state of the first case of `spec` that has none, unless one is begun.
inline absl::Status BeginNext(ModelRunner& model, const MovingPart& moving, const ObjectiveSpec& spec,
                              std::unique_ptr<NeighborPreparation>& preparation) {
  if (preparation) return absl::OkStatus();
  auto begun = model.NewPreparation(spec.cases[spec.states.size()], moving);
  if (!begun.ok()) return begun.status();
  preparation = *std::move(begun);
  return absl::OkStatus();
}

// Begins it and goes on with it, by about `row_layers`; once it is whole, it is in spec.states.
inline absl::Status PrepareNext(ModelRunner& model, const MovingPart& moving, int64_t row_layers, ObjectiveSpec& spec,
                                std::unique_ptr<NeighborPreparation>& preparation) {
  C3PO_RETURN_IF_ERROR(BeginNext(model, moving, spec, preparation));
  const absl::StatusOr<bool> whole = preparation->Advance(row_layers);
  if (!whole.ok()) return whole.status();
  if (!*whole) return absl::OkStatus();
  spec.states.push_back(preparation->state());
  preparation.reset();
  return absl::OkStatus();
}

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_PREPARE_NEXT_H_
