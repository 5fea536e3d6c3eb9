#ifndef C3PO_SERVER_PIPELINE_PATHWAY_SEARCH_H_
#define C3PO_SERVER_PIPELINE_PATHWAY_SEARCH_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "index/search/reference_catalog.h"
#include "server/metrics/metrics.h"
#include "server/pipeline/generation_types.h"
#include "server/pipeline/prompt_text.h"
#include "server/types/model_runner.h"
#include "server/types/sequence_request.h"

namespace c3po {

// What a pathway search works with; nothing is owned, all outlives every request.
struct SearchContext {
  ModelRunner* model = nullptr;
  const ReferenceCatalog* catalog = nullptr;
  const PromptText* text = nullptr;
  Metrics* metrics = nullptr;
};

// One request's C3PO, from neighbors to a routing override:
//   Retrieve (any thread) ▶ Begin (engine thread, after prefill) ▶ Step ... Step ▶ report, routing
// A step prepares one neighbor's states, or is one step of the optimizer. The report is delivered once: by Begin when
// the gate skips, else by the last step.
class PathwaySearch final : public OptimizationTask {
 public:
  using Deliver = std::function<void(const OptimizationReport&)>;
  PathwaySearch(const SearchContext& context, OptimizationSettings settings, StageTimings timings, Deliver deliver);

  // Finds the neighbors of a unit-length embedding. NotFound, FailedPrecondition: see ReferenceCatalog::Search.
  absl::Status Retrieve(absl::Span<const float> embedding);

  // Looks at the prompt's capture and logits, and says whether there is anything to do. False: the gate skipped.
  absl::StatusOr<bool> Begin(const PromptCapture& capture, absl::Span<const float> logits);

  absl::StatusOr<bool> Step() override;
  double retrieval_seconds() const { return report_.timings.retrieval_seconds; }
  std::shared_ptr<const RoutingOverride> routing() const override { return routing_; }

 private:
  absl::Status PrepareNext();
  absl::Status StartOptimizer();
  absl::StatusOr<std::unique_ptr<PathwayOptimizer>> MakeOptimizer(OptimizationProblem problem);
  Pathway CriticalRows(const Pathway& all_layers) const;
  void Conclude();
  void Skip(GateDecision decision);

  const SearchContext context_;
  const Deliver deliver_;
  OptimizationReport report_;
  std::vector<std::shared_ptr<const ReferenceRecord>> records_;  // of the neighbors, nearest first
  ObjectiveSpec spec_;
  std::unique_ptr<NeighborhoodObjective> objective_;
  std::unique_ptr<PathwayOptimizer> optimizer_;
  std::shared_ptr<const RoutingOverride> routing_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_PATHWAY_SEARCH_H_
