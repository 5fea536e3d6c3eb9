#ifndef C3PO_SERVER_PIPELINE_PATHWAY_SEARCH_H_
#define C3PO_SERVER_PIPELINE_PATHWAY_SEARCH_H_

#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "index/search/reference_catalog.h"
#include "server/metrics/metrics.h"
#include "server/pipeline/generation_types.h"
#include "server/pipeline/learned_shifts.h"
#include "server/pipeline/neighborhood.h"
#include "server/pipeline/neighborhood_fit.h"
#include "server/pipeline/optimization_settings.h"
#include "server/pipeline/prompt_text.h"
#include "server/pipeline/search_report.h"
#include "server/pipeline/search_work.h"
#include "server/types/model_runner.h"
#include "server/types/sequence_request.h"

namespace c3po {

// What a pathway search works with; nothing is owned, all outlives every request.
struct SearchContext {
  ModelRunner* model = nullptr;
  const ReferenceCatalog* catalog = nullptr;
  const PromptText* text = nullptr;
  LearnedShifts* shifts = nullptr;
  Metrics* metrics = nullptr;
  int64_t work_memory_bytes = int64_t{512} << 20;  // that one search may take, as ModelRunner::ObjectiveBytes has it
};

// What one request searches a pathway for.
struct PathwayQuery {
  OptimizationSettings settings;  // that ResolvePrior has seen
  StageTimings timings;           // of the stages before
  // First tokens of the continuations that the request scores, in their order; fewer than two: it does not choose.
  // Generation has none.
  std::vector<int32_t> choice_tokens;
  std::optional<NeighborCase> oracle;  // Method::kOracle: the request itself, with its answer
  bool shortened = false;              // settings.steps was cut to meet the deadline
  bool offset_applied = false;         // to the scores, by whoever delivers them
};

// One request's C3PO, from neighbors to a routing override:
//   Retrieve (any thread; by the prompt's states after prefill) ▶ Begin (engine thread, after prefill) ▶ unit ... unit
//   ▶ routing ▶ AcceptAnswer or AcceptScores
// A unit prepares one neighbor's states, makes the objectives of them, or is one unit of the optimizer; shifts learned
// before need one in all. What each stage does stands in retrieval.h, request_gate.h, learned_override.h,
// neighborhood_fit.h, optimizer_choice.h and search_report.h; this is their order.
class PathwaySearch final : public OptimizationTask {
 public:
  PathwaySearch(const SearchContext& context, PathwayQuery query, SearchReport::OnReport on_report);

  // Finds the neighbors of a unit-length embedding, or state of the prompt: see retrieval.h.
  absl::Status Retrieve(absl::Span<const float> embedding);

  // Looks at the prompt's capture and what comes next, as SequenceRequest::on_prefilled has them, and says whether
  // there is anything to do. False: the gate skipped.
  absl::StatusOr<bool> Begin(const PromptCapture& capture, const Readout& next);

  std::optional<Evaluation> Ask() const override;
  absl::StatusOr<bool> Step(int64_t row_layers) override;
  std::vector<Evaluation> AskAll() const override;
  absl::StatusOr<bool> Tell(const LossAndGradient& result, double seconds) override;
  absl::StatusOr<bool> TellAll(absl::Span<const LossAndGradient> results, double seconds) override;
  bool AcceptAnswer(double largest_probability) override;
  bool AcceptScores(absl::Span<const ContinuationScore> scores) override;
  // Of the state in which the neighbors were found; 0: none were looked for.
  int64_t index_generation() const { return report_.so_far().index_generation; }
  double retrieval_seconds() const { return report_.so_far().timings.retrieval_seconds; }
  // So far; engine thread only.
  const SearchWork& done() const { return done_; }
  int64_t memory_bytes() const override { return memory_bytes_; }
  std::shared_ptr<const RoutingOverride> routing() const override { return routing_; }

 private:
  const OptimizationSettings& settings() const { return report_.settings(); }
  absl::StatusOr<bool> BeginFit();
  absl::StatusOr<bool> Advance(int64_t row_layers);
  absl::Status StartOptimizer();
  bool Conclude();
  bool Skip(GateDecision decision);
  bool Accept(std::optional<double> confidence);

  const SearchContext context_;
  const std::vector<int32_t> choice_tokens_;
  const std::optional<NeighborCase> oracle_;
  SearchReport report_;
  int64_t memory_bytes_ = 0;
  SearchWork done_;
  int parts_ = 1;     // of the fitted neighbors
  absl::Time began_;  // when its turns could begin
  Neighborhood neighborhood_;
  NeighborhoodFit fit_;
  std::shared_ptr<const RoutingOverride> learned_;  // of methods that optimize nothing
  std::unique_ptr<PathwayOptimizer> optimizer_;
  std::shared_ptr<const RoutingOverride> routing_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_PATHWAY_SEARCH_H_
