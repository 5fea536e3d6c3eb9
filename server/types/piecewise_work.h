#ifndef C3PO_SERVER_TYPES_PIECEWISE_WORK_H_
#define C3PO_SERVER_TYPES_PIECEWISE_WORK_H_

#include <cstdint>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "server/types/neighborhood_objective.h"

namespace c3po {

// A computation in pieces, so that running streams go on between them. What it costs is counted in row-layers, rows
// through one decoder layer: the forward pass of T tokens through L layers costs T L, and the way back through a layer
// twice its rows. Engine thread only, as is all of ModelRunner.
class PiecewiseWork {
 public:
  static constexpr int64_t kToTheEnd = std::numeric_limits<int64_t>::max();

  virtual ~PiecewiseWork() = default;
  // Runs pieces, at least one, until they have cost `row_layers`; none where that is 0. A piece is one layer, for all the
  // rows that the work has there. True: all is done, and nothing is left to advance.
  virtual absl::StatusOr<bool> Advance(int64_t row_layers) = 0;
  // What all pieces that have run have cost.
  virtual int64_t spent() const = 0;
};

// Makes a neighbor's fixed states.
class NeighborPreparation : public PiecewiseWork {
 public:
  // From the beginning: the states were kept by an earlier preparation, and nothing is computed.
  virtual bool hit() const = 0;
  // Once Advance has said true.
  virtual std::shared_ptr<const NeighborState> state() const = 0;
};

// Runs evaluations of several objectives; an error of one is in its result, and Advance has none.
class EvaluationRun : public PiecewiseWork {
 public:
  // Once Advance has said true: in the order of the evaluations.
  virtual std::vector<absl::StatusOr<LossAndGradient>> TakeResults() = 0;
};

// For a state that is known: a hit.
class KnownNeighbor final : public NeighborPreparation {
 public:
  explicit KnownNeighbor(std::shared_ptr<const NeighborState> state) : state_(std::move(state)) {}
  absl::StatusOr<bool> Advance(int64_t /*row_layers*/) override { return true; }
  int64_t spent() const override { return 0; }
  bool hit() const override { return true; }
  std::shared_ptr<const NeighborState> state() const override { return state_; }

 private:
  const std::shared_ptr<const NeighborState> state_;
};

// Each evaluation by itself, as one piece.
class SeparateEvaluations final : public EvaluationRun {
 public:
  explicit SeparateEvaluations(std::vector<Evaluation> evaluations) : evaluations_(std::move(evaluations)) {}
  absl::StatusOr<bool> Advance(int64_t row_layers) override {
    const int64_t before = spent_;
    while (results_.size() < evaluations_.size() && spent_ - before < row_layers) {
      const Evaluation& next = evaluations_[results_.size()];
      spent_ += next.objective->rows();
      results_.push_back(next.Run());
    }
    return results_.size() == evaluations_.size();
  }
  int64_t spent() const override { return spent_; }
  std::vector<absl::StatusOr<LossAndGradient>> TakeResults() override { return std::move(results_); }

 private:
  const std::vector<Evaluation> evaluations_;
  std::vector<absl::StatusOr<LossAndGradient>> results_;
  int64_t spent_ = 0;
};

}  // namespace c3po

#endif  // C3PO_SERVER_TYPES_PIECEWISE_WORK_H_
