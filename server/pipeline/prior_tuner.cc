#include "server/pipeline/prior_tuner.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <utility>

#include "index/base/status_macros.h"
#include "index/base/steady_time.h"
#include "server/pipeline/seeded_shuffle.h"

namespace c3po {
PriorTuner::PriorTuner(ModelRunner* model, std::vector<NeighborCase> training, std::vector<NeighborCase> validation,
                       PriorTunerOptions options, std::function<void(const Epoch&)> on_epoch)
    : model_(model),
      training_(std::move(training)),
      validation_(std::move(validation)),
      options_(std::move(options)),
      memory_bytes_(MinibatchBytes(*model, training_, validation_, options_)),
      on_epoch_(std::move(on_epoch)),
      random_(options_.seed),
      epoch_start_(SteadyNow()),
      shift_(options_.critical_layers.size() * static_cast<size_t>(model_->shape().experts)),
      best_shift_(shift_),
      adam_(shift_.size()) {
  BeginPass(/*training=*/false);
}

int64_t PriorTuner::MinibatchBytes(const ModelRunner& model, const std::vector<NeighborCase>& training,
                                   const std::vector<NeighborCase>& validation, const PriorTunerOptions& options) {
  ObjectiveSpec spec;
  spec.critical_layers = options.critical_layers;
  std::vector<std::pair<int64_t, const NeighborCase*>> alone;
  for (const std::vector<NeighborCase>* cases : {&training, &validation}) {
    for (const NeighborCase& neighbor : *cases) {
      spec.cases = {neighbor};
      alone.emplace_back(model.ObjectiveBytes(spec, options.prompt_positions), &neighbor);
    }
  }
  const size_t count = std::min(alone.size(), static_cast<size_t>(options.batch_size));
  std::partial_sort(alone.begin(), alone.begin() + static_cast<std::ptrdiff_t>(count), alone.end(), std::greater<>());
  spec.cases.clear();
  for (size_t i = 0; i < count; ++i) spec.cases.push_back(*alone[i].second);
  return model.ObjectiveBytes(spec, options.prompt_positions);
}

size_t PriorTuner::BatchEnd() const {
  return std::min(cases().size(), pass_.next + static_cast<size_t>(options_.batch_size));
}

void PriorTuner::BeginPass(bool training) {
  pass_ = Pass();
  pass_.training = training;
  batch_ = ObjectiveSpec();
  if (training) SeededShuffle(random_, training_);
}

absl::StatusOr<bool> PriorTuner::Step(int64_t row_layers) {
  if (objective_) return absl::InternalError("the next unit is an evaluation");
  const size_t prepared = pass_.next + batch_.states.size();
  if (prepared == BatchEnd()) {
    C3PO_RETURN_IF_ERROR(BeginBatch());
    return false;
  }
  if (!preparations_.begun()) {
    batch_.cases.assign(cases().begin() + static_cast<std::ptrdiff_t>(pass_.next),
                        cases().begin() + static_cast<std::ptrdiff_t>(BatchEnd()));
    const MovingPart moving{options_.critical_layers.front(), options_.prompt_positions};
    C3PO_RETURN_IF_ERROR(preparations_.Begin(*model_, batch_.cases, moving));
  }
  C3PO_RETURN_IF_ERROR(preparations_.Advance(row_layers, batch_.states));
  return false;
}

RoutingOverride PriorTuner::Routing() const {
  Pathway values(static_cast<int>(options_.critical_layers.size()), model_->shape().experts);
  std::copy(shift_.begin(), shift_.end(), values.weights.begin());
  return {RoutingOverride::Kind::kLogitShift, options_.critical_layers, std::move(values)};
}

absl::Status PriorTuner::BeginBatch() {
  batch_.critical_layers = options_.critical_layers;
  batch_.rule = ApplicationRule::kRouterShift;
  batch_.loss = options_.loss;
  C3PO_ASSIGN_OR_RETURN(objective_, model_->NewObjective(batch_));
  return absl::OkStatus();
}

std::optional<Evaluation> PriorTuner::Ask() const {
  if (!objective_) return std::nullopt;
  return Evaluation{objective_.get(), Routing(), pass_.training};
}

absl::StatusOr<bool> PriorTuner::Tell(const LossAndGradient& result, double /*seconds*/) {
  pass_.loss_sum += result.loss * static_cast<double>(batch_.cases.size());
  pass_.correct += std::max<int64_t>(0, objective_->correct_choices());
  pass_.counted = pass_.counted && objective_->correct_choices() >= 0;
  if (pass_.training) Move(result.gradient);
  pass_.next += batch_.cases.size();
  batch_ = ObjectiveSpec();
  objective_.reset();
  return pass_.next < cases().size() ? false : EndPass();
}

void PriorTuner::Move(const Pathway& gradient) {
  const std::vector<double>& direction = adam_.Direction(gradient.weights);
  for (size_t i = 0; i < shift_.size(); ++i) {
    shift_[i] -= options_.learning_rate * (direction[i] + options_.weight_decay * shift_[i]);
  }
}

// A training pass is followed by a validation pass, which ends the epoch.
absl::StatusOr<bool> PriorTuner::EndPass() {
  const double loss = pass_.loss_sum / static_cast<double>(cases().size());
  if (pass_.training) {
    epoch_.training_loss = loss;
    BeginPass(/*training=*/false);
    return false;
  }
  epoch_.validation_loss = loss;
  if (pass_.counted) {
    epoch_.validation_accuracy = static_cast<double>(pass_.correct) / static_cast<double>(cases().size());
  }
  epoch_.seconds = absl::ToDoubleSeconds(SteadyNow() - epoch_start_);
  on_epoch_(epoch_);
  if (epoch_.number == 0) {
    first_ = best_ = epoch_;
  } else if (epoch_.validation_loss < best_.validation_loss) {
    best_ = epoch_;
    best_shift_ = shift_;
    worse_epochs_ = 0;
  } else {
    ++worse_epochs_;
  }
  if (epoch_.number >= options_.epochs || worse_epochs_ >= options_.patience) return true;
  const int next = epoch_.number + 1;
  epoch_ = Epoch();
  epoch_.number = next;
  epoch_start_ = SteadyNow();
  BeginPass(/*training=*/true);
  return false;
}

std::optional<CollectionPrior> PriorTuner::result() const {
  if (best_.number == 0) return std::nullopt;
  CollectionPrior prior;
  prior.routing = Routing();
  prior.prompt_positions = options_.prompt_positions;
  std::copy(best_shift_.begin(), best_shift_.end(), prior.routing.values.weights.begin());
  prior.model_digest = model_->shape().digest;
  prior.references = static_cast<int64_t>(training_.size());
  prior.validation_references = static_cast<int64_t>(validation_.size());
  prior.validation_loss_before = first_.validation_loss;
  prior.validation_loss_after = best_.validation_loss;
  prior.validation_accuracy_before = first_.validation_accuracy;
  prior.validation_accuracy_after = best_.validation_accuracy;
  return prior;
}

}  // namespace c3po
