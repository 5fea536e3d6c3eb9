#ifndef C3PO_SERVER_PIPELINE_SEARCH_REPORT_H_
#define C3PO_SERVER_PIPELINE_SEARCH_REPORT_H_

#include <functional>
#include <limits>
#include <optional>
#include <string>

#include "server/metrics/metrics.h"
#include "server/pathway/pathway_optimizer.h"
#include "server/pipeline/generation_types.h"
#include "server/pipeline/retrieval.h"

namespace c3po {

// The report of one search, as it grows, and the metrics that are told with it. It is delivered once: by Skip, by
// NoteOptimizer when the gate reverts, else by NoteTrial. One thread at a time.
class SearchReport {
 public:
  using OnReport = std::function<void(const OptimizationReport&)>;
  // `report` holds the settings and what the stages before took. `metrics`, which may be null, outlives it.
  SearchReport(OptimizationReport report, Metrics* metrics, OnReport on_report)
      : report_(std::move(report)), metrics_(metrics), on_report_(std::move(on_report)) {}

  const OptimizationReport& so_far() const { return report_; }
  const OptimizationSettings& settings() const { return report_.settings; }

  void Warn(std::string warning);  // an empty one is none
  // Work of the search's own.
  void AddSeconds(double seconds) { report_.timings.optimization_seconds += seconds; }

  void NoteRetrieval(const Retrieval& retrieval, double seconds);
  // What the model does by itself: the pathway of the critical layers, and how sure it is.
  void NoteStart(Pathway before, double confidence);
  // All work is done: of `seconds` since its turns could begin, what was not its own was waiting.
  void NoteEnd(double seconds);
  // What a finished optimizer found, and the gate's verdict on it, which is returned.
  GateDecision NoteOptimizer(const PathwayOptimizer& optimizer);
  // A learned shift is applied; no loss says how well.
  void NoteShift(const Pathway& shift);
  // How sure the model is under the pathway found; no value where it chooses nothing. Whether the pathway stays.
  bool NoteTrial(std::optional<double> confidence);
  // The request is left to the model alone.
  void Skip(GateDecision decision);

 private:
  void Revert();
  void Deliver();

  OptimizationReport report_;
  Metrics* const metrics_;
  const OnReport on_report_;
  double loss_reduction_ = std::numeric_limits<double>::quiet_NaN();  // of the neighbors, as a fraction
};

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_SEARCH_REPORT_H_
