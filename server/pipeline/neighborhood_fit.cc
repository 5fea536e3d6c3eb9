#include "server/pipeline/neighborhood_fit.h"

#include <utility>

#include "index/base/status_macros.h"

namespace c3po {
namespace {

absl::Status AddCases(const std::vector<WeightedReference>& references, const PromptText& text, ObjectiveSpec& spec) {
  const bool with_choices = spec.loss == SurrogateLoss::kChoices;
  for (const WeightedReference& reference : references) {
    if (!(reference.kernel_weight > 0)) continue;  // So far away that its kernel value underflowed.
    C3PO_ASSIGN_OR_RETURN(NeighborCase neighbor, text.NeighborTokens(*reference.record, with_choices));
    neighbor.kernel_weight = reference.kernel_weight;
    spec.cases.push_back(std::move(neighbor));
  }
  return absl::OkStatus();
}

}  // namespace

void NeighborhoodFit::Begin(const OptimizationSettings& settings) {
  prompt_positions_ = settings.prompt_positions;
  for (List* list : {&fitted_, &held_out_}) {
    list->spec.critical_layers = settings.critical_layers;
    list->spec.rule = settings.rule;
    list->spec.loss = settings.objective;
  }
}

absl::Status NeighborhoodFit::TakeNeighbors(const OptimizationSettings& settings, const Neighborhood& neighborhood,
                                            const PromptText& text) {
  Begin(settings);
  C3PO_RETURN_IF_ERROR(AddCases(neighborhood.fitted, text, fitted_.spec));
  return AddCases(neighborhood.held_out, text, held_out_.spec);
}

void NeighborhoodFit::TakeOracle(const OptimizationSettings& settings, NeighborCase oracle) {
  Begin(settings);
  is_oracle_ = true;
  fitted_.spec.cases.push_back(std::move(oracle));
}

absl::StatusOr<MemoryFit> NeighborhoodFit::KeepWithin(int64_t bytes) {
  return FitIntoMemory(*model_, bytes, prompt_positions_, is_oracle_, fitted_.spec, held_out_.spec);
}

absl::Status NeighborhoodFit::BeginPreparations(SearchWork& work) {
  std::vector<NeighborCase> cases = fitted_.spec.cases;
  cases.insert(cases.end(), held_out_.spec.cases.begin(), held_out_.spec.cases.end());
  for (const NeighborCase& one : cases) work.NoteCase(one, prompt_positions_);
  const MovingPart moving{fitted_.spec.critical_layers.front(), prompt_positions_};
  C3PO_RETURN_IF_ERROR(preparations_.Begin(*model_, cases, moving));
  for (const auto& preparation : preparations_.all()) {
    if (metrics_) preparation->hit() ? metrics_->CountNeighborCacheHit() : metrics_->CountNeighborCacheMiss();
  }
  return absl::OkStatus();
}

absl::Status NeighborhoodFit::Prepare(int64_t row_layers, SearchWork& work) {
  if (!preparations_.begun()) C3PO_RETURN_IF_ERROR(BeginPreparations(work));
  std::vector<std::shared_ptr<const NeighborState>> whole;
  C3PO_RETURN_IF_ERROR(preparations_.Advance(row_layers, whole));
  for (auto& state : whole) (fitted_.prepared() ? held_out_ : fitted_).spec.states.push_back(std::move(state));
  if (metrics_) metrics_->SetNeighborCacheBytes(model_->neighbor_cache_bytes());
  return absl::OkStatus();
}

absl::Status NeighborhoodFit::MakeObjectives() {
  C3PO_ASSIGN_OR_RETURN(fitted_.objective, model_->NewObjective(fitted_.spec));
  if (held_out_.spec.cases.empty()) return absl::OkStatus();
  C3PO_ASSIGN_OR_RETURN(held_out_.objective, model_->NewObjective(held_out_.spec));
  return absl::OkStatus();
}

void NeighborhoodFit::Release() {
  preparations_ = CasePreparations();
  for (List* list : {&fitted_, &held_out_}) {
    list->objective.reset();
    list->spec.states.clear();
  }
}

}  // namespace c3po
