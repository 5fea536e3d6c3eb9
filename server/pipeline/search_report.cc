#include "server/pipeline/search_report.h"

#include <algorithm>
#include <utility>

#include "server/pipeline/gate_reason.h"
#include "server/pipeline/optimization_settings.h"
#include "server/pipeline/pathway_changes.h"
#include "server/pipeline/request_gate.h"

namespace c3po {

void SearchReport::Warn(std::string warning) {
  if (!warning.empty()) report_.warnings.push_back(std::move(warning));
}

void SearchReport::NoteRetrieval(const Retrieval& retrieval, double seconds) {
  if (!retrieval.warning.empty()) report_.settings.warnings.push_back(retrieval.warning);
  report_.index_generation = retrieval.generation;
  report_.nearest_distance = retrieval.nearest_distance;
  report_.max_neighbor_distance = retrieval.max_neighbor_distance;
  if (NeedsNeighbors(report_.settings)) {
    for (const WeightedReference& neighbor : retrieval.neighborhood.fitted) {
      const ReferenceRecord& record = *neighbor.record;
      report_.neighbors.push_back({record.id, record.sample.prompt, record.sample.answer, neighbor.distance,
                                   neighbor.kernel_weight, record.successful});
    }
  }
  report_.timings.retrieval_seconds = seconds;
  if (metrics_ == nullptr) return;
  metrics_->ObserveRetrieval(seconds);
  if (report_.nearest_distance) metrics_->ObserveNeighborDistance(*report_.nearest_distance);
}

void SearchReport::NoteStart(Pathway before, double confidence) {
  report_.before = std::move(before);
  report_.base_confidence = confidence;
}

void SearchReport::NoteEnd(double seconds) {
  report_.timings.optimization_wait_seconds = std::max(0.0, seconds - report_.timings.optimization_seconds);
  if (metrics_) metrics_->ObserveOptimizationWait(report_.timings.optimization_wait_seconds);
}

GateDecision SearchReport::NoteOptimizer(const PathwayOptimizer& optimizer) {
  report_.losses = optimizer.losses();
  report_.validation_losses = optimizer.validation_losses();
  report_.selected_step = optimizer.selected_step();
  report_.alpha = optimizer.alpha();
  report_.after = optimizer.pathway();
  const LossChange fitted{report_.losses.front(), optimizer.best_loss()};
  if (fitted.before > 0) loss_reduction_ = (fitted.before - fitted.after) / fitted.before;
  if (metrics_) {
    metrics_->CountOptimizationSteps(optimizer.steps_taken());
    metrics_->ObserveSurrogateLoss(fitted.before, fitted.after);
  }
  report_.gate = GateAfterSearch(report_, fitted);
  if (report_.gate == GateDecision::kApplied) {
    report_.largest_changes = LargestChanges(report_.before, report_.after, report_.settings.critical_layers);
  } else {
    Revert();
    Deliver();
  }
  return report_.gate;
}

void SearchReport::NoteShift(const Pathway& shift) {
  report_.gate = GateDecision::kApplied;
  report_.after = Shifted(report_.before, shift.weights);
  report_.largest_changes = LargestChanges(report_.before, report_.after, report_.settings.critical_layers);
}

bool SearchReport::NoteTrial(std::optional<double> confidence) {
  report_.optimized_confidence = confidence;
  if (confidence) report_.gate = GateAfterTrial(report_.settings.gate, *confidence);
  const bool stays = report_.gate == GateDecision::kApplied;
  if (!stays) Revert();
  Deliver();
  return stays;
}

void SearchReport::Skip(GateDecision decision) {
  report_.gate = decision;
  Revert();
  report_.gate_reason = GateReason(report_);
  if (metrics_) metrics_->CountGate(decision);
  on_report_(report_);
}

void SearchReport::Revert() {
  report_.after = report_.before;
  report_.largest_changes.clear();
}

void SearchReport::Deliver() {
  report_.gate_reason = GateReason(report_);
  if (metrics_) {
    metrics_->ObserveOptimization(report_.settings.method, report_.timings.optimization_seconds, loss_reduction_);
    metrics_->CountGate(report_.gate);
  }
  on_report_(report_);
}

}  // namespace c3po
