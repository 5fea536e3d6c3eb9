#include "server/pipeline/pathway_search.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "index/base/status_macros.h"
#include "index/base/steady_time.h"
#include "server/pipeline/choice_style.h"
#include "server/pipeline/confidence.h"
#include "server/pipeline/gate_reason.h"
#include "server/pipeline/memory_fit.h"
#include "server/pipeline/pathway_changes.h"
#include "server/pipeline/prepare_next.h"

namespace c3po {
namespace {

constexpr double kModeFindingAlpha = 0.5;

double SecondsSince(absl::Time start) { return absl::ToDoubleSeconds(SteadyNow() - start); }

// The settings by which references are looked for. Only gradient descent holds neighbors out. A prior was fitted to all
// references and asks for the nearest one only: whether the request is of their kind.
OptimizationSettings Retrieved(OptimizationSettings settings) {
  if (settings.method != Method::kNeighborhoodGradientDescent) settings.validation_neighbors = 0;
  if (settings.method != Method::kCollectionPrior) return settings;
  settings.k = 1;
  settings.epsilon.reset();
  settings.references = ReferenceSelection::kAll;
  return settings;
}

}  // namespace

absl::Status ResolvePrior(LearnedShifts& shifts, OptimizationSettings& settings) {
  if (settings.method == Method::kAmortizedShift || settings.method == Method::kCollectionPrior) {
    settings.rule = ApplicationRule::kRouterShift;
  }
  if (settings.method != Method::kCollectionPrior && !settings.use_prior) return absl::OkStatus();
  C3PO_ASSIGN_OR_RETURN(const auto prior, shifts.Prior(settings.collection));
  settings.critical_layers = prior->routing.layers;
  settings.prompt_positions = prior->prompt_positions;
  return absl::OkStatus();
}

PathwaySearch::PathwaySearch(const SearchContext& context, PathwayQuery query, OnReport on_report)
    : context_(context),
      choice_tokens_(std::move(query.choice_tokens)),
      oracle_(std::move(query.oracle)),
      on_report_(std::move(on_report)) {
  report_.settings = std::move(query.settings);
  report_.timings = query.timings;
  report_.shortened = query.shortened;
}

absl::Status PathwaySearch::Retrieve(absl::Span<const float> embedding) {
  const absl::Time start = SteadyNow();
  absl::StatusOr<Neighborhood> found = FindNeighborhood(*context_.catalog, Retrieved(report_.settings), embedding);
  const bool foreign = absl::IsFailedPrecondition(found.status());  // All of another model: the request does without.
  if (foreign) report_.settings.warnings.emplace_back(found.status().message());
  const bool missing = absl::IsNotFound(found.status()) && report_.settings.collection_may_be_missing;
  if (foreign || missing) found = Neighborhood();
  C3PO_RETURN_IF_ERROR(found.status());
  neighborhood_ = *std::move(found);
  if (!neighborhood_.fitted.empty()) C3PO_RETURN_IF_ERROR(MeasureDistances());
  if (NeedsNeighbors(report_.settings)) {
    for (const WeightedReference& neighbor : neighborhood_.fitted) {
      const ReferenceRecord& record = *neighbor.record;
      report_.neighbors.push_back({record.id, record.sample.prompt, record.sample.answer, neighbor.distance,
                                   neighbor.kernel_weight, record.successful});
    }
  }
  report_.timings.retrieval_seconds = SecondsSince(start);
  if (context_.metrics) {
    context_.metrics->ObserveRetrieval(report_.timings.retrieval_seconds);
    if (report_.nearest_distance) context_.metrics->ObserveNeighborDistance(*report_.nearest_distance);
  }
  return absl::OkStatus();
}

// What the gate compares: how far the nearest reference is, and how far it may be.
absl::Status PathwaySearch::MeasureDistances() {
  const OptimizationSettings settings = Retrieved(report_.settings);
  report_.nearest_distance = neighborhood_.fitted.front().distance;
  if (!settings.gate.enabled) return absl::OkStatus();
  report_.max_neighbor_distance = settings.gate.max_neighbor_distance;
  if (report_.max_neighbor_distance) return absl::OkStatus();
  C3PO_ASSIGN_OR_RETURN(const std::optional<double> own,
                        context_.catalog->OwnDistanceQuantile(settings.collection, settings.successful_only(),
                                                              settings.gate.neighbor_distance_quantile));
  report_.max_neighbor_distance = std::max<double>(own.value_or(0), OwnDistances::kSameEmbedding);
  return absl::OkStatus();
}

GateDecision PathwaySearch::Gate() const {
  const OptimizationSettings& settings = report_.settings;
  if (settings.method == Method::kOracle) return GateDecision::kApplied;
  const bool has_neighbors = report_.nearest_distance || !Retrieves(settings);
  GateOptions gate = settings.gate;
  gate.max_neighbor_distance = report_.max_neighbor_distance;
  return GateBeforeOptimization(gate, has_neighbors, report_.nearest_distance.value_or(0), *report_.base_confidence);
}

absl::StatusOr<bool> PathwaySearch::Begin(const PromptCapture& capture, absl::Span<const float> logits) {
  const OptimizationSettings& settings = report_.settings;
  began_ = SteadyNow();
  report_.before = CriticalRows(capture.pathway);
  report_.base_confidence = Confidence(logits, choice_tokens_);
  if (const GateDecision decision = Gate(); decision != GateDecision::kApplied) {
    Skip(decision);
    return false;
  }
  if (settings.method == Method::kAmortizedShift || settings.method == Method::kCollectionPrior) {
    C3PO_RETURN_IF_ERROR(TakeLearnedShift());
    if (learned_) return true;
    Skip(GateDecision::kSkippedNoNeighbors);
    return false;
  }
  for (Fit* fit : {&fitted_, &held_out_}) {
    fit->spec.critical_layers = settings.critical_layers;
    fit->spec.rule = settings.rule;
    fit->spec.loss = settings.objective;
  }
  if (oracle_) {
    fitted_.spec.cases.push_back(*oracle_);
  } else {
    C3PO_RETURN_IF_ERROR(AddCases(neighborhood_.fitted, fitted_));
    C3PO_RETURN_IF_ERROR(AddCases(neighborhood_.held_out, held_out_));
    std::string warning = CompareStyles(*context_.text->tokenizer(), choice_tokens_, fitted_.spec.cases);
    if (!warning.empty()) report_.warnings.push_back(std::move(warning));
  }
  C3PO_ASSIGN_OR_RETURN(MemoryFit memory,
                        FitIntoMemory(*context_.model, context_.work_memory_bytes, settings.prompt_positions,
                                      oracle_.has_value(), fitted_.spec, held_out_.spec));
  memory_bytes_ = memory.bytes;
  if (!memory.warning.empty()) report_.warnings.push_back(std::move(memory.warning));
  if (!memory.fits) Skip(GateDecision::kSkippedNoNeighbors);
  return memory.fits;
}

absl::Status PathwaySearch::AddCases(const std::vector<WeightedReference>& references, Fit& fit) const {
  const bool with_choices = report_.settings.objective == SurrogateLoss::kChoices;
  for (const WeightedReference& reference : references) {
    if (!(reference.kernel_weight > 0)) continue;  // So far away that its kernel value underflowed.
    C3PO_ASSIGN_OR_RETURN(NeighborCase neighbor, context_.text->NeighborTokens(*reference.record, with_choices));
    neighbor.kernel_weight = reference.kernel_weight;
    fit.spec.cases.push_back(std::move(neighbor));
  }
  return absl::OkStatus();
}

// The prior as it is, or the kernel-weighted mean of the neighbors' own shifts, those that have one for these layers.
// Leaves learned_ null when none has.
absl::Status PathwaySearch::TakeLearnedShift() {
  const OptimizationSettings& settings = report_.settings;
  auto routing = std::make_shared<RoutingOverride>();
  routing->kind = RoutingOverride::Kind::kLogitShift;
  routing->layers = settings.critical_layers;
  routing->values = Pathway(report_.before.layers, report_.before.experts);
  std::vector<float>& mean = routing->values.weights;
  if (settings.method == Method::kCollectionPrior) {
    C3PO_ASSIGN_OR_RETURN(routing->values, PriorShift());
  } else {
    double sum = 0;
    for (const WeightedReference& neighbor : neighborhood_.fitted) {
      C3PO_ASSIGN_OR_RETURN(const auto shift, context_.shifts->Shift(settings.collection, neighbor.record->id));
      if (!shift || shift->routing.layers != settings.critical_layers) continue;
      sum += neighbor.kernel_weight;
      for (size_t i = 0; i < mean.size(); ++i) {
        mean[i] += static_cast<float>(neighbor.kernel_weight * shift->routing.values.weights[i]);
      }
    }
    if (!(sum > 0)) return absl::OkStatus();
    for (float& value : mean) value = static_cast<float>(value / sum);
  }
  for (float& value : mean) value = static_cast<float>(value * settings.step_scale);
  learned_ = std::move(routing);
  return absl::OkStatus();
}

absl::StatusOr<bool> PathwaySearch::Step(int64_t row_layers) {
  if (learned_) {
    ConcludeLearnedShift();
    return true;
  }
  const absl::Time start = SteadyNow();
  C3PO_ASSIGN_OR_RETURN(const bool finished, Advance(row_layers));
  report_.timings.optimization_seconds += SecondsSince(start);
  if (finished) ConcludeOptimizer();
  return finished;
}

absl::StatusOr<bool> PathwaySearch::Advance(int64_t row_layers) {
  if (optimizer_) {
    done_.NoteEvaluation(/*with_gradient=*/true);  // A step of arithmetic alone counts as one.
    return optimizer_->Tell(nullptr);
  }
  if (!fitted_.prepared()) {
    C3PO_RETURN_IF_ERROR(Prepare(fitted_, row_layers));
  } else if (!held_out_.prepared()) {
    C3PO_RETURN_IF_ERROR(Prepare(held_out_, row_layers));
  } else {
    C3PO_RETURN_IF_ERROR(StartOptimizer());
  }
  return false;
}

std::optional<Evaluation> PathwaySearch::Ask() const { return optimizer_ ? optimizer_->Ask() : std::nullopt; }

absl::StatusOr<bool> PathwaySearch::Tell(const LossAndGradient& result, double seconds) {
  const absl::Time start = SteadyNow();
  done_.NoteEvaluation(!result.gradient.weights.empty());
  C3PO_ASSIGN_OR_RETURN(const bool finished, optimizer_->Tell(&result));
  report_.timings.optimization_seconds += seconds + SecondsSince(start);
  if (finished) ConcludeOptimizer();
  return finished;
}

absl::Status PathwaySearch::Prepare(Fit& fit, int64_t row_layers) {
  const NeighborCacheStats before = context_.model->neighbor_cache_stats();
  const MovingPart moving{fit.spec.critical_layers.front(), report_.settings.prompt_positions};
  if (!preparation_) ++done_.prepared_cases;
  C3PO_RETURN_IF_ERROR(PrepareNext(*context_.model, moving, row_layers, fit.spec, preparation_));
  if (context_.metrics) {
    const NeighborCacheStats after = context_.model->neighbor_cache_stats();
    if (after.hits > before.hits) context_.metrics->CountNeighborCacheHit();
    if (after.misses > before.misses) context_.metrics->CountNeighborCacheMiss();
    context_.metrics->SetNeighborCacheBytes(after.bytes);
  }
  return absl::OkStatus();
}

Pathway PathwaySearch::CriticalRows(const Pathway& all_layers) const {
  return all_layers.Rows(report_.settings.critical_layers);
}

// Of the layers and positions that the request resumes from: those that ResolvePrior found before.
absl::StatusOr<Pathway> PathwaySearch::PriorShift() const {
  C3PO_ASSIGN_OR_RETURN(const auto prior, context_.shifts->Prior(report_.settings.collection));
  if (prior->routing.layers != report_.settings.critical_layers ||
      prior->prompt_positions != report_.settings.prompt_positions)
    return absl::FailedPreconditionError("the prior was replaced by one of other layers or positions; ask again");
  return prior->routing.values;
}

absl::Status PathwaySearch::StartOptimizer() {
  C3PO_ASSIGN_OR_RETURN(fitted_.objective, context_.model->NewObjective(fitted_.spec));
  const OptimizationSettings& settings = report_.settings;
  OptimizationProblem problem;
  problem.initial = report_.before;
  problem.critical_layers = settings.critical_layers;
  problem.core_experts = settings.core_experts;
  problem.rule = settings.rule;
  problem.objective = fitted_.objective.get();
  if (!held_out_.spec.cases.empty()) {
    C3PO_ASSIGN_OR_RETURN(held_out_.objective, context_.model->NewObjective(held_out_.spec));
    problem.validation = held_out_.objective.get();
  }
  if (settings.use_prior) {
    C3PO_ASSIGN_OR_RETURN(problem.initial_shift, PriorShift());
  }
  C3PO_ASSIGN_OR_RETURN(optimizer_, MakeOptimizer(std::move(problem)));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<PathwayOptimizer>> PathwaySearch::MakeOptimizer(OptimizationProblem problem) {
  const OptimizationSettings& settings = report_.settings;
  if (settings.method == Method::kKernelRegression) {
    std::vector<WeightedPathway> neighbors;
    for (const WeightedReference& neighbor : neighborhood_.fitted) {
      neighbors.push_back({CriticalRows(neighbor.record->pathway), neighbor.kernel_weight});
    }
    return MakeKernelRegression(std::move(problem), std::move(neighbors), settings.alpha);
  }
  if (settings.method == Method::kModeFinding) {
    ModeFindingOptions options{settings.steps,
                               settings.alpha.value_or(kModeFindingAlpha),
                               settings.kernel,
                               settings.bandwidth.value_or(0),
                               {}};
    options.nearest = [this](const Pathway& w) -> absl::StatusOr<std::vector<PathwayAtDistance>> {
      const OptimizationSettings& s = report_.settings;
      const int excluded = static_cast<int>(s.exclude_reference_ids.size());
      C3PO_ASSIGN_OR_RETURN(const std::vector<Neighbor> found,
                            context_.catalog->SearchPathways(s.collection, w.weights, s.critical_layers, s.k + excluded,
                                                             s.successful_only()));
      std::vector<PathwayAtDistance> near;
      for (const Neighbor& neighbor : found) {
        const auto& ids = s.exclude_reference_ids;
        if (std::find(ids.begin(), ids.end(), neighbor.reference_id) != ids.end()) continue;
        const auto pathway = context_.catalog->GetPathway(neighbor.reference_id);
        if (pathway.ok() && near.size() < static_cast<size_t>(s.k))
          near.push_back({CriticalRows(**pathway), neighbor.distance});
      }
      return near;
    };
    return MakeModeFinding(std::move(problem), std::move(options));
  }
  return MakeGradientDescent(std::move(problem), settings);
}

// What of the time since Begin was not its own work.
void PathwaySearch::NoteWait() {
  report_.timings.optimization_wait_seconds =
      std::max(0.0, SecondsSince(began_) - report_.timings.optimization_seconds);
  if (context_.metrics) context_.metrics->ObserveOptimizationWait(report_.timings.optimization_wait_seconds);
}

void PathwaySearch::ConcludeOptimizer() {
  NoteWait();
  report_.losses = optimizer_->losses();
  report_.validation_losses = optimizer_->validation_losses();
  report_.selected_step = optimizer_->selected_step();
  report_.alpha = optimizer_->alpha();
  report_.after = optimizer_->pathway();
  const LossChange fitted{report_.losses.front(), optimizer_->best_loss()};
  std::optional<LossChange> held_out;
  if (!report_.validation_losses.empty()) {
    held_out = LossChange{report_.validation_losses.front(), report_.validation_losses[*report_.selected_step]};
  }
  report_.gate = GateAfterOptimization(report_.settings.gate, fitted, held_out);
  // Where the start is the prior and no step was better, the prior is what the request gets.
  const bool prior_stays = report_.settings.use_prior && report_.selected_step == 0;
  const bool applied = report_.gate == GateDecision::kApplied || prior_stays;
  if (applied) {
    report_.gate = GateDecision::kApplied;
    routing_ = std::make_shared<RoutingOverride>(optimizer_->Override());
    report_.largest_changes = LargestChanges(report_.before, report_.after, report_.settings.critical_layers);
  } else {
    report_.after = report_.before;
  }
  if (context_.metrics) {
    context_.metrics->CountOptimizationSteps(static_cast<int64_t>(report_.losses.size()) - 1);
    context_.metrics->ObserveSurrogateLoss(fitted.before, fitted.after);
  }
  optimizer_.reset();
  memory_bytes_ = 0;
  for (Fit* fit : {&fitted_, &held_out_}) {
    fit->objective.reset();
    fit->spec.states.clear();
  }
  if (fitted.before > 0) loss_reduction_ = (fitted.before - fitted.after) / fitted.before;
  if (!applied) Deliver();
}

void PathwaySearch::ConcludeLearnedShift() {
  NoteWait();
  routing_ = learned_;
  report_.gate = GateDecision::kApplied;
  report_.after = Shifted(report_.before, learned_->values.weights);
  report_.largest_changes = LargestChanges(report_.before, report_.after, report_.settings.critical_layers);
}

bool PathwaySearch::AcceptLogits(absl::Span<const float> logits) {
  return Accept(LargestProbability({logits.begin(), logits.end()}));
}

// Of one continuation nothing is chosen, so there is nothing to be sure of.
bool PathwaySearch::AcceptScores(absl::Span<const ContinuationScore> scores) {
  if (scores.size() < 2) return Accept(std::nullopt);
  std::vector<double> normalized;
  for (const ContinuationScore& score : scores) {
    normalized.push_back(score.per_token());
  }
  return Accept(LargestProbability(normalized));
}

bool PathwaySearch::Accept(std::optional<double> confidence) {
  report_.optimized_confidence = confidence;
  if (confidence) report_.gate = GateAfterTrial(report_.settings.gate, *confidence);
  const bool accepted = report_.gate == GateDecision::kApplied;
  if (!accepted) {
    report_.after = report_.before;
    report_.largest_changes.clear();
    routing_.reset();
  }
  Deliver();
  return accepted;
}

void PathwaySearch::Deliver() {
  report_.gate_reason = GateReason(report_);
  if (context_.metrics) {
    context_.metrics->ObserveOptimization(report_.settings.method, report_.timings.optimization_seconds,
                                          loss_reduction_);
    context_.metrics->CountGate(report_.gate);
  }
  on_report_(report_);
}

void PathwaySearch::Skip(GateDecision decision) {
  report_.gate = decision;
  report_.gate_reason = GateReason(report_);
  report_.after = report_.before;
  if (context_.metrics) context_.metrics->CountGate(decision);
  on_report_(report_);
}

}  // namespace c3po
