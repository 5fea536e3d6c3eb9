// A vote of pathways: several descents side by side, and the mean of what they find.

#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/pathway/pathway_optimizer.h"

namespace c3po {
namespace {

class PathwayVote final : public PathwayOptimizer {
 public:
  struct Part {
    VotePart of;
    std::unique_ptr<PathwayOptimizer> descent;
    bool finished = false;
  };

  PathwayVote(OptimizationProblem problem, std::vector<Part> parts)
      : PathwayOptimizer(std::move(problem)), parts_(std::move(parts)), chosen_(parts_.front().descent->Override()) {
    selected_step_ = 0;
    for (const Part& part : parts_) weight_ += part.of.weight;
  }

  // In rounds: each part that has not finished, in order; then the mean at each part's objective and the held-out one.
  std::optional<Evaluation> Ask() const override {
    return next_ < parts_.size() ? parts_[next_].descent->Ask() : Closing(next_ - parts_.size());
  }

  std::vector<Evaluation> AskAll() const override {
    std::vector<Evaluation> all;
    if (next_ < parts_.size()) {
      for (size_t i = next_; i < parts_.size(); ++i) {
        if (!parts_[i].finished) all.push_back(*parts_[i].descent->Ask());
      }
    } else {
      for (size_t i = next_; i < closings(); ++i) all.push_back(Closing(i - parts_.size()));
    }
    return all;
  }

  RoutingOverride Override() const override { return chosen_; }

  int64_t steps_taken() const override {
    int64_t steps = 0;
    for (const Part& part : parts_) steps += part.descent->steps_taken();
    return steps;
  }

 private:
  // next_ counts on from the parts to their objectives at the mean, and the held-out one.
  size_t closings() const { return 2 * parts_.size() + (problem_.validation != nullptr ? 1 : 0); }

  Evaluation Closing(size_t i) const {
    return {i < parts_.size() ? parts_[i].of.objective : problem_.validation, mean_, /*want_gradient=*/false};
  }

  absl::StatusOr<bool> Take(const LossAndGradient& result) override {
    if (next_ < parts_.size()) {
      C3PO_ASSIGN_OR_RETURN(parts_[next_].finished, parts_[next_].descent->Tell(&result));
      next_ = NextOpen(next_ + 1);
      if (next_ == parts_.size()) next_ = NextOpen(0);
      if (next_ == parts_.size()) mean_ = Mean();
      return false;
    }
    const size_t i = next_++ - parts_.size();
    if (i < parts_.size()) {
      loss_ += parts_[i].of.weight / weight_ * result.loss;
    } else {
      held_out_ = result.loss;
    }
    return next_ == closings() && Finish();
  }

  // The first part from `from` on that has not finished; parts_.size(): none.
  size_t NextOpen(size_t from) const {
    while (from < parts_.size() && parts_[from].finished) ++from;
    return from;
  }

  RoutingOverride Mean() const {
    RoutingOverride mean = parts_.front().descent->Override();
    std::vector<double> sum(mean.values.weights.size());
    for (const Part& part : parts_) {
      const RoutingOverride found = part.descent->Override();
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += found.values.weights[i];
    }
    for (size_t i = 0; i < sum.size(); ++i) {
      mean.values.weights[i] = static_cast<float>(sum[i] / static_cast<double>(parts_.size()));
    }
    return mean;
  }

  // Chooses between the start, which all parts have measured, and the mean.
  bool Finish() {
    double start = 0;
    for (const Part& part : parts_) start += part.of.weight / weight_ * part.descent->losses().front();
    losses_ = {start, loss_};
    bool better = loss_ < start;  // NaN is not.
    if (problem_.validation != nullptr) {
      validation_losses_ = {parts_.front().descent->validation_losses().front(), held_out_};
      better = held_out_ < validation_losses_.front();
    }
    selected_step_ = better ? 1 : 0;
    best_loss_ = losses_[better ? 1 : 0];
    if (better) chosen_ = mean_;
    pathway_ = chosen_.values;
    if (chosen_.kind == RoutingOverride::Kind::kLogitShift) {
      pathway_ = Shifted(problem_.initial, chosen_.values.weights);
    }
    return true;
  }

  std::vector<Part> parts_;
  double weight_ = 0;       // of all parts
  size_t next_ = 0;         // whose evaluation Ask says
  RoutingOverride mean_;    // once all parts have finished
  RoutingOverride chosen_;  // the start, then what is taken
  double loss_ = 0, held_out_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PathwayOptimizer>> MakePathwayVote(OptimizationProblem problem,
                                                                  const std::vector<VotePart>& parts,
                                                                  const GradientDescentOptions& options) {
  if (parts.empty()) return absl::InvalidArgumentError("a vote needs at least one part");
  std::vector<PathwayVote::Part> descents;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (!(parts[i].weight > 0))
      return absl::InvalidArgumentError(absl::StrCat("parts[", i, "].weight is not positive"));
    OptimizationProblem own = problem;
    own.objective = parts[i].objective;
    PathwayVote::Part part{parts[i], nullptr};
    C3PO_ASSIGN_OR_RETURN(part.descent, MakeGradientDescent(std::move(own), options));
    descents.push_back(std::move(part));
  }
  return std::make_unique<PathwayVote>(std::move(problem), std::move(descents));
}

}  // namespace c3po
