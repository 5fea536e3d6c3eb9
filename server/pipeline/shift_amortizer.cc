#include "server/pipeline/shift_amortizer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "index/base/number_text.h"
#include "index/base/status_macros.h"

namespace c3po {

std::string ShiftSettingsText(const OptimizationSettings& settings) {
  return absl::StrCat("layers ", absl::StrJoin(settings.critical_layers, ","), " core ", settings.core_experts,
                      " loss ", static_cast<int>(settings.objective), " rule ", static_cast<int>(settings.step_rule),
                      " steps ", settings.steps, " rate ", NumberText(settings.learning_rate),
                      settings.prompt_positions == 1 ? "" : absl::StrCat(" positions ", settings.prompt_positions),
                      settings.trust == 0 ? "" : absl::StrCat(" trust ", NumberText(settings.trust)));
}

ShiftAmortizer::ShiftAmortizer(ModelRunner* model, std::vector<Reference> references, OptimizationSettings settings,
                               std::function<absl::Status(ReferenceShift)> on_shift)
    : model_(model),
      references_(std::move(references)),
      settings_(std::move(settings)),
      on_shift_(std::move(on_shift)) {
  ObjectiveSpec spec;
  spec.critical_layers = settings_.critical_layers;
  for (const Reference& reference : references_) {
    spec.cases = {reference.neighbor};
    memory_bytes_ = std::max(memory_bytes_, model_->ObjectiveBytes(spec, settings_.prompt_positions));
  }
}

absl::Status ShiftAmortizer::Prepare(int64_t row_layers) {
  if (spec_.cases.empty()) {
    spec_.cases = {references_[next_].neighbor};
    spec_.critical_layers = settings_.critical_layers;
    spec_.rule = ApplicationRule::kRouterShift;
    spec_.loss = settings_.objective;  // Of one reference: kPairs is kChoices.
    spec_.trust = settings_.trust;
  }
  const MovingPart moving{settings_.critical_layers.front(), settings_.prompt_positions};
  if (!preparations_.begun()) C3PO_RETURN_IF_ERROR(preparations_.Begin(*model_, spec_.cases, moving));
  return preparations_.Advance(row_layers, spec_.states);
}

absl::Status ShiftAmortizer::Begin() {
  const Reference& reference = references_[next_];
  C3PO_ASSIGN_OR_RETURN(objective_, model_->NewObjective(spec_));
  spec_ = ObjectiveSpec();
  OptimizationProblem problem;
  problem.initial = reference.pathway.Rows(settings_.critical_layers);
  problem.critical_layers = settings_.critical_layers;
  problem.core_experts = settings_.core_experts;
  problem.rule = ApplicationRule::kRouterShift;
  problem.objective = objective_.get();
  C3PO_ASSIGN_OR_RETURN(optimizer_, MakeGradientDescent(std::move(problem), {settings_.steps, settings_.learning_rate,
                                                                             settings_.step_rule, 1.0}));
  return absl::OkStatus();
}

absl::StatusOr<bool> ShiftAmortizer::Step(int64_t row_layers) {
  if (next_ >= references_.size()) return true;
  if (!optimizer_) {
    C3PO_RETURN_IF_ERROR(spec_.states.empty() ? Prepare(row_layers) : Begin());
    return false;
  }
  return optimizer_->Tell(nullptr);
}

std::optional<Evaluation> ShiftAmortizer::Ask() const { return optimizer_ ? optimizer_->Ask() : std::nullopt; }

absl::StatusOr<bool> ShiftAmortizer::Tell(const LossAndGradient& result, double /*seconds*/) {
  C3PO_ASSIGN_OR_RETURN(const bool found, optimizer_->Tell(&result));
  return found ? Conclude() : false;
}

absl::StatusOr<bool> ShiftAmortizer::Conclude() {
  ReferenceShift shift{references_[next_].neighbor.reference_id, optimizer_->Override(), model_->shape().digest,
                       ShiftSettingsText(settings_)};
  optimizer_.reset();
  objective_.reset();
  C3PO_RETURN_IF_ERROR(on_shift_(std::move(shift)));
  return ++next_ >= references_.size();
}

}  // namespace c3po
