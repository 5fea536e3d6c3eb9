#ifndef C3PO_SERVER_PIPELINE_NEIGHBORHOOD_FIT_H_
#define C3PO_SERVER_PIPELINE_NEIGHBORHOOD_FIT_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "index/types/optimization_options.h"
#include "server/metrics/metrics.h"
#include "server/pathway/pathway_optimizer.h"
#include "server/pipeline/case_preparations.h"
#include "server/pipeline/memory_fit.h"
#include "server/pipeline/neighborhood.h"
#include "server/pipeline/neighborhood_parts.h"
#include "server/pipeline/prompt_text.h"
#include "server/pipeline/search_work.h"
#include "server/types/model_runner.h"

namespace c3po {

// The neighbors of one request on their way to the objectives that its pathway is fitted to and judged by:
//   TakeNeighbors or TakeOracle ▶ KeepWithin ▶ Prepare ... Prepare, until prepared ▶ MakeObjectives ▶ Release
// Engine thread only.
class NeighborhoodFit {
 public:
  // `model` and `metrics` (which may be null) outlive it.
  NeighborhoodFit(ModelRunner* model, Metrics* metrics) : model_(model), metrics_(metrics) {}

  // Tokenizes both lists; those whose kernel value underflowed are left out. Errors: PromptText::NeighborTokens.
  absl::Status TakeNeighbors(const OptimizationSettings& settings, const Neighborhood& neighborhood,
                             const PromptText& text);
  // The request itself with its answer, for Method::kOracle.
  void TakeOracle(const OptimizationSettings& settings, NeighborCase oracle);

  const std::vector<NeighborCase>& fitted_cases() const { return fitted_.spec.cases; }

  // See FitIntoMemory.
  absl::StatusOr<MemoryFit> KeepWithin(int64_t bytes);

  bool prepared() const { return fitted_.prepared() && held_out_.prepared(); }
  // Goes on with the neighbors' states, by about `row_layers`; the fitted ones first. All are begun, and noted in
  // `work`, by the first call, so that the model can make them together.
  absl::Status Prepare(int64_t row_layers, SearchWork& work);

  absl::Status MakeObjectives();
  // The objective of the fitted neighbors, with the sum of their kernel values; of several parts, one each, at least
  // one. With `neighborhoods` above 1 neighbors are dealt into so many parts, or as many as there are neighbors.
  std::vector<VotePart> fitted() const;
  NeighborhoodObjective* held_out() const {  // null: no neighbor is held out
    return held_out_.objectives.empty() ? nullptr : held_out_.objectives.front().get();
  }

  // How many parts the fitted neighbors are in; 1 where they are not divided.
  int parts() const { return static_cast<int>(SpecsOfParts(fitted_.spec, part_of_).size()); }

  // Where an objective was to be over pairs and found none, in words; else empty.
  std::string PairWarning() const;

  // Frees objectives and states; the cases stay.
  void Release();

 private:
  // A list of cases with the states and the objective that are made of them.
  struct List {
    ObjectiveSpec spec;
    std::vector<std::unique_ptr<NeighborhoodObjective>> objectives;  // of its parts
    std::vector<double> weights;                                     // of these
    bool prepared() const { return spec.states.size() == spec.cases.size(); }
  };

  void Begin(const OptimizationSettings& settings);
  absl::Status MakeObjectives(absl::Span<const int> part_of, List& list) const;
  absl::Status BeginPreparations(SearchWork& work);

  ModelRunner* const model_;
  Metrics* const metrics_;
  int prompt_positions_ = 1;
  bool is_oracle_ = false;
  List fitted_, held_out_;
  std::vector<int> part_of_;       // of each fitted case; empty: they are not divided
  CasePreparations preparations_;  // of the fitted ones, then of those that are held out
};

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_NEIGHBORHOOD_FIT_H_
