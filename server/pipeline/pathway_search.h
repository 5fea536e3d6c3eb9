#ifndef C3PO_SERVER_PIPELINE_PATHWAY_SEARCH_H_
#define C3PO_SERVER_PIPELINE_PATHWAY_SEARCH_H_

#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "index/search/reference_catalog.h"
#include "server/metrics/metrics.h"
#include "server/pathway/pathway_optimizer.h"
#include "server/pipeline/generation_types.h"
#include "server/pipeline/learned_shifts.h"
#include "server/pipeline/neighborhood.h"
#include "server/pipeline/optimization_settings.h"
#include "server/pipeline/prompt_text.h"
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
  OptimizationSettings settings;
  StageTimings timings;  // of the stages before
  // First tokens of the continuations that the request scores; fewer than two: it does not choose. Generation has none.
  std::vector<int32_t> choice_tokens;
  std::optional<NeighborCase> oracle;  // Method::kOracle: the request itself, with its answer
  bool shortened = false;              // settings.steps was cut to meet the deadline
};

// Puts the prior's layers into settings that begin at it. NotFound: the collection has no prior.
absl::Status ResolvePrior(LearnedShifts& shifts, OptimizationSettings& settings);

// One request's C3PO, from neighbors to a routing override:
//   Retrieve (any thread) ▶ Begin (engine thread, after prefill) ▶ Step ... Step ▶ report, routing
// A unit prepares one neighbor's states, makes the objectives of them, or is one unit of the optimizer; shifts learned
// before need one in all.
// The report is delivered once: by Begin when the gate skips, by the last step when it reverts, else with the verdict
// on what the request itself gave under the new pathway.
class PathwaySearch final : public OptimizationTask {
 public:
  using OnReport = std::function<void(const OptimizationReport&)>;
  PathwaySearch(const SearchContext& context, PathwayQuery query, OnReport on_report);

  // Finds the neighbors of a unit-length embedding. There are none where settings.collection_may_be_missing and it is;
  // nor, with a warning in the report, where references exist and none is usable. NotFound: see
  // ReferenceCatalog::Search.
  absl::Status Retrieve(absl::Span<const float> embedding);

  // Looks at the prompt's capture and logits, and says whether there is anything to do. False: the gate skipped.
  absl::StatusOr<bool> Begin(const PromptCapture& capture, absl::Span<const float> logits);

  absl::StatusOr<bool> Step(int64_t row_layers) override;
  std::optional<Evaluation> Ask() const override;
  absl::StatusOr<bool> Tell(const LossAndGradient& result, double seconds) override;
  bool AcceptLogits(absl::Span<const float> logits) override;
  bool AcceptScores(absl::Span<const ContinuationScore> scores) override;
  double retrieval_seconds() const { return report_.timings.retrieval_seconds; }
  // So far; engine thread only.
  const SearchWork& done() const { return done_; }
  int64_t memory_bytes() const override { return memory_bytes_; }
  std::shared_ptr<const RoutingOverride> routing() const override { return routing_; }

 private:
  // A list of cases with the states and the objective that are made of them.
  struct Fit {
    ObjectiveSpec spec;
    std::unique_ptr<NeighborhoodObjective> objective;
    bool prepared() const { return spec.states.size() == spec.cases.size(); }
  };

  absl::StatusOr<bool> Advance(int64_t row_layers);
  absl::Status MeasureDistances();
  GateDecision Gate() const;
  absl::Status AddCases(const std::vector<WeightedReference>& references, Fit& fit) const;
  absl::Status TakeLearnedShift();
  absl::StatusOr<Pathway> PriorShift() const;
  absl::Status Prepare(Fit& fit, int64_t row_layers);
  absl::Status StartOptimizer();
  absl::StatusOr<std::unique_ptr<PathwayOptimizer>> MakeOptimizer(OptimizationProblem problem);
  Pathway CriticalRows(const Pathway& all_layers) const;
  void ConcludeOptimizer();
  void ConcludeLearnedShift();
  void NoteWait();
  bool Accept(std::optional<double> confidence);
  void Deliver();
  void Skip(GateDecision decision);

  const SearchContext context_;
  const std::vector<int32_t> choice_tokens_;
  const std::optional<NeighborCase> oracle_;
  const OnReport on_report_;
  OptimizationReport report_;
  int64_t memory_bytes_ = 0;
  SearchWork done_;
  absl::Time began_;                                                  // when its turns could begin
  double loss_reduction_ = std::numeric_limits<double>::quiet_NaN();  // of the neighbors, as a fraction
  Neighborhood neighborhood_;
  Fit fitted_, held_out_;
  std::unique_ptr<NeighborPreparation> preparation_;  // of the next state of one of them
  std::shared_ptr<const RoutingOverride> learned_;    // of methods that optimize nothing
  std::unique_ptr<PathwayOptimizer> optimizer_;
  std::shared_ptr<const RoutingOverride> routing_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_PATHWAY_SEARCH_H_
