#include "server/pipeline/pathway_search.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/time/clock.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr size_t kReportedChanges = 8;

double SecondsSince(absl::Time start) { return absl::ToDoubleSeconds(absl::Now() - start); }

double LargestProbability(absl::Span<const float> logits) {
  const float top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float logit : logits) sum += std::exp(double{logit} - top);
  return 1 / sum;
}

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

Metrics::Gate GateMetric(GateDecision decision) {
  switch (decision) {
    case GateDecision::kApplied:
      return Metrics::Gate::kApplied;
    case GateDecision::kNotRequested:
      return Metrics::Gate::kNotRequested;
    case GateDecision::kSkippedNoNeighbors:
      return Metrics::Gate::kSkippedNoNeighbors;
    case GateDecision::kSkippedNeighborsFar:
      return Metrics::Gate::kSkippedNeighborsFar;
    case GateDecision::kSkippedBaseConfident:
      return Metrics::Gate::kSkippedBaseConfident;
    case GateDecision::kRevertedLossNotReduced:
      return Metrics::Gate::kRevertedLossNotReduced;
  }
  return Metrics::Gate::kNotRequested;
}

Metrics::Method MethodMetric(Method method) {
  switch (method) {
    case Method::kModeFinding:
      return Metrics::Method::kModeFinding;
    case Method::kKernelRegression:
      return Metrics::Method::kKernelRegression;
    case Method::kNone:
    case Method::kNeighborhoodGradientDescent:
      break;
  }
  return Metrics::Method::kNeighborhoodGradientDescent;
}

}  // namespace

PathwaySearch::PathwaySearch(const SearchContext& context, OptimizationSettings settings, StageTimings timings,
                             Deliver deliver)
    : context_(context), deliver_(std::move(deliver)) {
  report_.settings = std::move(settings);
  report_.timings = timings;
}

absl::Status PathwaySearch::Retrieve(absl::Span<const float> embedding) {
  const OptimizationSettings& settings = report_.settings;
  const absl::Time start = absl::Now();
  C3PO_ASSIGN_OR_RETURN(
      const std::vector<Neighbor> neighbors,
      settings.epsilon
          ? context_.catalog->SearchWithin(settings.collection, embedding, static_cast<float>(*settings.epsilon),
                                           kNeighborsMax, settings.successful_only)
          : context_.catalog->Search(settings.collection, embedding, settings.k, settings.successful_only));
  std::vector<double> distances;
  for (const Neighbor& neighbor : neighbors) {
    auto record = context_.catalog->GetRecord(neighbor.reference_id);
    if (!record.ok()) continue;  // Deleted since the search.
    const ReferenceSample& sample = (*record)->sample;
    report_.neighbors.push_back(
        {neighbor.reference_id, sample.prompt, sample.answer, neighbor.distance, 0, (*record)->successful});
    distances.push_back(neighbor.distance);
    records_.push_back(*std::move(record));
  }
  const std::vector<double> kernel = KernelValues(settings.kernel, distances, settings.bandwidth.value_or(0));
  double sum = 0;
  for (double value : kernel) sum += value;
  for (size_t i = 0; i < kernel.size(); ++i) report_.neighbors[i].kernel_weight = kernel[i] / sum;
  report_.timings.retrieval_seconds = SecondsSince(start);
  if (context_.metrics) {
    context_.metrics->ObserveRetrieval(report_.timings.retrieval_seconds);
    if (!distances.empty()) context_.metrics->ObserveNeighborDistance(distances.front());
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> PathwaySearch::Begin(const PromptCapture& capture, absl::Span<const float> logits) {
  const OptimizationSettings& settings = report_.settings;
  const GateDecision decision =
      GateBeforeOptimization(settings.gate, !records_.empty(),
                             records_.empty() ? 0 : report_.neighbors.front().distance, LargestProbability(logits));
  if (decision != GateDecision::kApplied) {
    Skip(decision);
    return false;
  }
  report_.before = CriticalRows(capture.pathway);
  spec_.critical_layers = settings.critical_layers;
  spec_.rule = settings.rule;
  spec_.loss = settings.objective;
  for (size_t i = 0; i < records_.size(); ++i) {
    const double weight = report_.neighbors[i].kernel_weight;
    if (!(weight > 0)) continue;  // So far away that its kernel value underflowed.
    const bool with_choices = settings.objective == SurrogateLoss::kChoices;
    C3PO_ASSIGN_OR_RETURN(NeighborCase neighbor, context_.text->NeighborTokens(*records_[i], with_choices));
    neighbor.kernel_weight = weight;
    spec_.cases.push_back(std::move(neighbor));
  }
  return true;
}

absl::StatusOr<bool> PathwaySearch::Step() {
  const absl::Time start = absl::Now();
  bool finished = false;
  if (spec_.states.size() < spec_.cases.size()) {
    C3PO_RETURN_IF_ERROR(PrepareNext());
  } else {
    if (!optimizer_) C3PO_RETURN_IF_ERROR(StartOptimizer());
    C3PO_ASSIGN_OR_RETURN(finished, optimizer_->Step());
  }
  report_.timings.optimization_seconds += SecondsSince(start);
  if (finished) Conclude();
  return finished;
}

absl::Status PathwaySearch::PrepareNext() {
  const NeighborCacheStats before = context_.model->neighbor_cache_stats();
  const NeighborCase& neighbor = spec_.cases[spec_.states.size()];
  C3PO_ASSIGN_OR_RETURN(auto state, context_.model->PrepareNeighbor(neighbor, spec_.critical_layers.front()));
  spec_.states.push_back(std::move(state));
  if (context_.metrics) {
    const NeighborCacheStats after = context_.model->neighbor_cache_stats();
    if (after.hits > before.hits) context_.metrics->CountNeighborCacheHit();
    if (after.misses > before.misses) context_.metrics->CountNeighborCacheMiss();
    context_.metrics->SetNeighborCacheBytes(after.bytes);
  }
  return absl::OkStatus();
}

Pathway PathwaySearch::CriticalRows(const Pathway& all_layers) const {
  const std::vector<int>& layers = report_.settings.critical_layers;
  Pathway rows(static_cast<int>(layers.size()), all_layers.experts);
  for (size_t i = 0; i < layers.size(); ++i) {
    const auto row = all_layers.Row(layers[i]);
    std::copy(row.begin(), row.end(), rows.Row(static_cast<int>(i)).begin());
  }
  return rows;
}

absl::Status PathwaySearch::StartOptimizer() {
  C3PO_ASSIGN_OR_RETURN(objective_, context_.model->NewObjective(spec_));
  OptimizationProblem problem;
  problem.initial = report_.before;
  problem.critical_layers = spec_.critical_layers;
  problem.core_experts = report_.settings.core_experts;
  problem.rule = spec_.rule;
  problem.objective = objective_.get();
  C3PO_ASSIGN_OR_RETURN(optimizer_, MakeOptimizer(std::move(problem)));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<PathwayOptimizer>> PathwaySearch::MakeOptimizer(OptimizationProblem problem) {
  const OptimizationSettings& settings = report_.settings;
  if (settings.method == Method::kKernelRegression) {
    std::vector<WeightedPathway> neighbors;
    for (size_t i = 0; i < records_.size(); ++i) {
      neighbors.push_back({CriticalRows(records_[i]->pathway), report_.neighbors[i].kernel_weight});
    }
    return MakeKernelRegression(std::move(problem), std::move(neighbors));
  }
  if (settings.method == Method::kModeFinding) {
    ModeFindingOptions options{settings.steps, settings.alpha, settings.kernel, settings.bandwidth.value_or(0), {}};
    options.nearest = [this](const Pathway& w) -> absl::StatusOr<std::vector<PathwayAtDistance>> {
      const OptimizationSettings& s = report_.settings;
      C3PO_ASSIGN_OR_RETURN(
          const std::vector<Neighbor> found,
          context_.catalog->SearchPathways(s.collection, w.weights, s.critical_layers, s.k, s.successful_only));
      std::vector<PathwayAtDistance> near;
      for (const Neighbor& neighbor : found) {
        const auto pathway = context_.catalog->GetPathway(neighbor.reference_id);
        if (pathway.ok()) near.push_back({CriticalRows(**pathway), neighbor.distance});
      }
      return near;
    };
    return MakeModeFinding(std::move(problem), std::move(options));
  }
  return MakeGradientDescent(std::move(problem), {settings.steps, settings.learning_rate, settings.step_rule});
}

void PathwaySearch::Conclude() {
  report_.losses = optimizer_->losses();
  report_.alpha = optimizer_->alpha();
  report_.after = optimizer_->pathway();
  const double before = report_.losses.front(), after = optimizer_->best_loss();
  report_.gate = GateAfterOptimization(report_.settings.gate, before, after);
  if (report_.gate == GateDecision::kApplied) {
    routing_ = std::make_shared<RoutingOverride>(optimizer_->Override());
    report_.largest_changes = LargestChanges(report_.before, report_.after, spec_.critical_layers);
  } else {
    report_.after = report_.before;
  }
  if (context_.metrics) {
    context_.metrics->ObserveOptimization(
        MethodMetric(report_.settings.method), report_.timings.optimization_seconds,
        before > 0 ? (before - after) / before : std::numeric_limits<double>::quiet_NaN());
    context_.metrics->CountOptimizationSteps(static_cast<int64_t>(report_.losses.size()) - 1);
    context_.metrics->CountGate(GateMetric(report_.gate));
  }
  optimizer_.reset();
  objective_.reset();
  spec_.states.clear();
  deliver_(report_);
}

void PathwaySearch::Skip(GateDecision decision) {
  report_.gate = decision;
  if (context_.metrics) context_.metrics->CountGate(GateMetric(decision));
  deliver_(report_);
}

}  // namespace c3po
