#include "server/pipeline/neighborhood_fit.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

// Returns those that it added.
absl::StatusOr<std::vector<const WeightedReference*>> AddCases(const std::vector<WeightedReference>& references,
                                                               const PromptText& text, ObjectiveSpec& spec) {
  const bool with_choices = ReadsChoices(spec.loss);
  std::vector<const WeightedReference*> added;
  for (const WeightedReference& reference : references) {
    if (!(reference.kernel_weight > 0)) continue;  // So far away that its kernel value underflowed.
    C3PO_ASSIGN_OR_RETURN(NeighborCase neighbor, text.NeighborTokens(*reference.record, with_choices));
    neighbor.kernel_weight = reference.kernel_weight;
    spec.cases.push_back(std::move(neighbor));
    added.push_back(&reference);
  }
  return added;
}

}  // namespace

void NeighborhoodFit::Begin(const OptimizationSettings& settings) {
  prompt_positions_ = settings.prompt_positions;
  for (List* list : {&fitted_, &held_out_}) {
    list->spec.critical_layers = settings.critical_layers;
    list->spec.rule = settings.rule;
    list->spec.loss = settings.objective;
  }
  // Of what descends alone. Held-out neighbors judge by the loss itself.
  const bool descends = settings.method == Method::kNeighborhoodGradientDescent || settings.method == Method::kOracle;
  fitted_.spec.trust = descends ? settings.trust : 0;
}

absl::Status NeighborhoodFit::TakeNeighbors(const OptimizationSettings& settings, const Neighborhood& neighborhood,
                                            const PromptText& text) {
  Begin(settings);
  C3PO_ASSIGN_OR_RETURN(const std::vector<const WeightedReference*> fitted,
                        AddCases(neighborhood.fitted, text, fitted_.spec));
  if (settings.neighborhoods > 1) part_of_ = DealIntoParts(fitted, settings.neighborhoods, settings.balance);
  return AddCases(neighborhood.held_out, text, held_out_.spec).status();
}

void NeighborhoodFit::TakeOracle(const OptimizationSettings& settings, NeighborCase oracle) {
  Begin(settings);
  is_oracle_ = true;
  fitted_.spec.cases.push_back(std::move(oracle));
}

absl::StatusOr<MemoryFit> NeighborhoodFit::KeepWithin(int64_t bytes) {
  return FitIntoMemory(*model_, bytes, prompt_positions_, is_oracle_, fitted_.spec, held_out_.spec, part_of_);
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
  C3PO_RETURN_IF_ERROR(MakeObjectives(part_of_, fitted_));
  return held_out_.spec.cases.empty() ? absl::OkStatus() : MakeObjectives({}, held_out_);
}

absl::Status NeighborhoodFit::MakeObjectives(absl::Span<const int> part_of, List& list) const {
  for (const ObjectiveSpec& part : SpecsOfParts(list.spec, part_of)) {
    C3PO_ASSIGN_OR_RETURN(std::unique_ptr<NeighborhoodObjective> objective, model_->NewObjective(part));
    list.objectives.push_back(std::move(objective));
    list.weights.push_back(WeightOf(part));
  }
  return absl::OkStatus();
}

std::vector<VotePart> NeighborhoodFit::fitted() const {
  std::vector<VotePart> parts;
  for (size_t i = 0; i < fitted_.objectives.size(); ++i) {
    parts.push_back({fitted_.objectives[i].get(), fitted_.weights[i]});
  }
  return parts;
}

std::string NeighborhoodFit::PairWarning() const {
  std::vector<std::string> lists;
  for (const List* list : {&fitted_, &held_out_}) {
    const bool is_fitted = list == &fitted_;
    const std::vector<ObjectiveSpec> parts =
        SpecsOfParts(list->spec, is_fitted ? absl::MakeConstSpan(part_of_) : absl::Span<const int>());
    size_t without = 0;  // neighbors of the parts that have no pair
    for (size_t i = 0; i < list->objectives.size(); ++i) {
      if (list->objectives[i]->pairs() == 0) without += parts[i].cases.size();
    }
    if (without == 0) continue;
    lists.push_back(
        absl::StrCat("the ", without, is_fitted ? "" : " held-out", without == 1 ? " neighbor" : " neighbors"));
  }
  if (lists.empty()) return "";
  return absl::StrCat("the objective PAIRS was CHOICES for ", absl::StrJoin(lists, " and "),
                      ": no two of them have the same choices and different answers");
}

void NeighborhoodFit::Release() {
  preparations_ = CasePreparations();
  for (List* list : {&fitted_, &held_out_}) {
    list->objectives.clear();
    list->spec.states.clear();
  }
}

}  // namespace c3po
