#include "server/pipeline/pathway_search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "absl/time/clock.h"
#include "index/base/status_macros.h"
#include "server/pipeline/optimization_metrics.h"

namespace c3po {
namespace {

constexpr size_t kReportedChanges = 8;
constexpr double kModeFindingAlpha = 0.5;

double SecondsSince(absl::Time start) { return absl::ToDoubleSeconds(absl::Now() - start); }

std::vector<ExpertChange> LargestChanges(const Pathway& before, const Pathway& after, const std::vector<int>& layers) {
  std::vector<ExpertChange> changes;
  for (int l = 0; l < before.layers; ++l) {
    for (int e = 0; e < before.experts; ++e) {
      if (before.Row(l)[e] != after.Row(l)[e]) changes.push_back({layers[l], e, before.Row(l)[e], after.Row(l)[e]});
    }
  }
  const auto larger = [](const ExpertChange& a, const ExpertChange& b) {
    return std::abs(a.after - a.before) > std::abs(b.after - b.before);
  };
  std::stable_sort(changes.begin(), changes.end(), larger);
  changes.resize(std::min(changes.size(), kReportedChanges));
  return changes;
}

// The largest of softmax(logits).
double LargestProbability(const std::vector<double>& logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (double logit : logits) sum += std::exp(logit - top);
  return 1 / sum;
}

// softmax(log w + shift), per row.
Pathway Shifted(const Pathway& w, const Pathway& shift) {
  Pathway result = w;
  for (int l = 0; l < w.layers; ++l) {
    double sum = 0;
    for (int e = 0; e < w.experts; ++e) sum += w.Row(l)[e] * std::exp(double{shift.Row(l)[e]});
    for (int e = 0; e < w.experts; ++e) {
      result.Row(l)[e] = static_cast<float>(w.Row(l)[e] * std::exp(double{shift.Row(l)[e]}) / sum);
    }
  }
  return result;
}

}  // namespace

bool NeedsNeighbors(const OptimizationSettings& settings) {
  return settings.method != Method::kNone && settings.method != Method::kCollectionPrior &&
         settings.method != Method::kOracle;
}

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
  const absl::Time start = absl::Now();
  C3PO_ASSIGN_OR_RETURN(neighborhood_, FindNeighborhood(*context_.catalog, report_.settings, embedding));
  for (const WeightedReference& neighbor : neighborhood_.fitted) {
    const ReferenceRecord& record = *neighbor.record;
    report_.neighbors.push_back({record.id, record.sample.prompt, record.sample.answer, neighbor.distance,
                                 neighbor.kernel_weight, record.successful});
  }
  report_.timings.retrieval_seconds = SecondsSince(start);
  if (context_.metrics) {
    context_.metrics->ObserveRetrieval(report_.timings.retrieval_seconds);
    if (!report_.neighbors.empty()) context_.metrics->ObserveNeighborDistance(report_.neighbors.front().distance);
  }
  return absl::OkStatus();
}

// The model's own probability of its likeliest next token; where the request chooses among continuations that begin
// differently, its probability among their first tokens.
double PathwaySearch::BaseConfidence(absl::Span<const float> logits) const {
  std::map<int32_t, double> candidates;
  for (int32_t token : choice_tokens_) candidates[token] = logits[token];
  if (candidates.size() < 2) return LargestProbability({logits.begin(), logits.end()});
  std::vector<double> of_choices;
  for (const auto& [token, logit] : candidates) of_choices.push_back(logit);
  return LargestProbability(of_choices);
}

GateDecision PathwaySearch::Gate() const {
  const bool alone = !NeedsNeighbors(report_.settings);  // Nothing to be far from.
  if (report_.settings.method == Method::kOracle) return GateDecision::kApplied;
  const bool has_neighbors = alone || !report_.neighbors.empty();
  const double nearest = report_.neighbors.empty() ? 0 : report_.neighbors.front().distance;
  return GateBeforeOptimization(report_.settings.gate, has_neighbors, nearest, *report_.base_confidence);
}

absl::StatusOr<bool> PathwaySearch::Begin(const PromptCapture& capture, absl::Span<const float> logits) {
  const OptimizationSettings& settings = report_.settings;
  report_.before = CriticalRows(capture.pathway);
  report_.base_confidence = BaseConfidence(logits);
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
  }
  return true;
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

absl::StatusOr<bool> PathwaySearch::Step() {
  if (learned_) {
    ConcludeLearnedShift();
    return true;
  }
  const absl::Time start = absl::Now();
  C3PO_ASSIGN_OR_RETURN(const bool finished, Advance());
  report_.timings.optimization_seconds += SecondsSince(start);
  if (finished) ConcludeOptimizer();
  return finished;
}

absl::StatusOr<bool> PathwaySearch::Advance() {
  if (optimizer_) return optimizer_->Step();
  if (!fitted_.prepared()) {
    C3PO_RETURN_IF_ERROR(PrepareNext(fitted_));
  } else if (!held_out_.prepared()) {
    C3PO_RETURN_IF_ERROR(PrepareNext(held_out_));
  } else {
    C3PO_RETURN_IF_ERROR(StartOptimizer());
  }
  return false;
}

std::optional<Evaluation> PathwaySearch::Ask() const { return optimizer_ ? optimizer_->Ask() : std::nullopt; }

absl::StatusOr<bool> PathwaySearch::Tell(const LossAndGradient& result, double seconds) {
  const absl::Time start = absl::Now();
  C3PO_ASSIGN_OR_RETURN(const bool finished, optimizer_->Tell(result));
  report_.timings.optimization_seconds += seconds + SecondsSince(start);
  if (finished) ConcludeOptimizer();
  return finished;
}

absl::Status PathwaySearch::PrepareNext(Fit& fit) {
  const NeighborCacheStats before = context_.model->neighbor_cache_stats();
  const NeighborCase& neighbor = fit.spec.cases[fit.spec.states.size()];
  const MovingPart moving{fit.spec.critical_layers.front(), report_.settings.prompt_positions};
  C3PO_ASSIGN_OR_RETURN(auto state, context_.model->PrepareNeighbor(neighbor, moving));
  fit.spec.states.push_back(std::move(state));
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
                                                             s.successful_only));
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
  GradientDescentOptions options{settings.steps,      settings.learning_rate, settings.step_rule,
                                 settings.step_scale, settings.backtrack,     settings.patience};
  return MakeGradientDescent(std::move(problem), options);
}

void PathwaySearch::ConcludeOptimizer() {
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
  for (Fit* fit : {&fitted_, &held_out_}) {
    fit->objective.reset();
    fit->spec.states.clear();
  }
  if (fitted.before > 0) loss_reduction_ = (fitted.before - fitted.after) / fitted.before;
  if (!applied) Deliver();
}

void PathwaySearch::ConcludeLearnedShift() {
  routing_ = learned_;
  report_.gate = GateDecision::kApplied;
  report_.after = Shifted(report_.before, learned_->values);
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
    normalized.push_back(score.log_likelihood / static_cast<double>(score.token_logprobs.size()));
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
  if (context_.metrics) {
    context_.metrics->ObserveOptimization(MethodMetric(report_.settings.method), report_.timings.optimization_seconds,
                                          loss_reduction_);
    context_.metrics->CountGate(GateMetric(report_.gate));
  }
  on_report_(report_);
}

void PathwaySearch::Skip(GateDecision decision) {
  report_.gate = decision;
  report_.after = report_.before;
  if (context_.metrics) context_.metrics->CountGate(GateMetric(decision));
  on_report_(report_);
}

}  // namespace c3po
