#include "server/model/neighbor_loss.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/device_failure.h"
#include "index/base/status_macros.h"
#include "server/model/neighbor_pass.h"
#include "server/model/placed_score_loss.h"

namespace c3po {
namespace {

absl::Status CheckSpec(const ObjectiveSpec& spec, const ModelShape& shape) {
  if (spec.cases.empty() || spec.cases.size() != spec.states.size()) {
    return absl::InvalidArgumentError("an objective needs at least one neighbor, and one state for each");
  }
  if (spec.critical_layers.empty() || !std::is_sorted(spec.critical_layers.begin(), spec.critical_layers.end()) ||
      spec.critical_layers.front() < 0 || spec.critical_layers.back() >= shape.moe_layers) {
    return absl::InvalidArgumentError("critical layers must be ascending MoE layers of the model");
  }
  for (size_t i = 0; i < spec.cases.size(); ++i) {
    const NeighborCase& neighbor = spec.cases[i];
    const auto* state = dynamic_cast<const MoeNeighborState*>(spec.states[i].get());
    if (state == nullptr || state->first_layer != spec.critical_layers.front() ||
        state->tree.lengths.size() != neighbor.continuations.size()) {
      return absl::InvalidArgumentError(absl::StrCat("neighbor ", i, ": its state was made for another objective"));
    }
    if (neighbor.gold < 0 || neighbor.gold >= static_cast<int>(neighbor.continuations.size()) ||
        !(neighbor.kernel_weight > 0)) {
      return absl::InvalidArgumentError(absl::StrCat("neighbor ", i, ": gold or kernel weight is out of range"));
    }
    if (!neighbor.texts.empty() && neighbor.texts.size() != neighbor.continuations.size()) {
      return absl::InvalidArgumentError(absl::StrCat("neighbor ", i, ": every continuation needs a text, or none has"));
    }
  }
  if (!(spec.trust >= 0) || !std::isfinite(spec.trust)) {
    return absl::InvalidArgumentError("the weight of a trust region must be a finite number, at least 0");
  }
  return absl::OkStatus();
}

// Whether an answer is one token out of several.
bool ChoosesOneToken(const std::vector<int>& lengths) {
  return lengths.size() > 1 && std::all_of(lengths.begin(), lengths.end(), [](int length) { return length == 1; });
}

// A pass of more rows waits for its arithmetic rather than for launches, and a backend would keep room for its tapes.
constexpr int64_t kWholeRowsMax = 128;

absl::Status ErrorOf(const std::exception& error) {
  return FailureOfDeviceOr(absl::InternalError(absl::StrCat("neighbor loss: ", error.what())));
}

}  // namespace

absl::StatusOr<std::unique_ptr<NeighborLoss>> NeighborLoss::Create(const MoeModel& model, const ObjectiveSpec& spec) {
  C3PO_RETURN_IF_ERROR(CheckSpec(spec, model.shape()));
  try {
    return std::unique_ptr<NeighborLoss>(new NeighborLoss(model, spec));
  } catch (const std::exception& error) {
    return ErrorOf(error);
  }
}

NeighborLoss::NeighborLoss(const MoeModel& model, const ObjectiveSpec& spec)
    : model_(model), loss_(spec.loss, spec.trust, spec.cases), rows_(model, spec) {
  ChooseTargets(spec);
  if (!loss_.needs_base()) MakeReady();
}

void NeighborLoss::ChooseTargets(const ObjectiveSpec& spec) {
  std::vector<int64_t> rows, tokens;
  std::map<std::pair<int64_t, int32_t>, size_t> seen;  // (row, token) -> target
  int64_t first_row = 0;
  for (size_t i = 0; i < spec.cases.size(); ++i) {
    const AnswerTree& tree = static_cast<const MoeNeighborState&>(*spec.states[i]).tree;
    for (const AnswerTree::Target& target : tree.targets) {
      first_same_.push_back(seen.try_emplace({first_row + target.row, target.token}, targets_.size()).first->second);
      targets_.push_back({static_cast<int>(i), target.continuation});
      rows.push_back(first_row + target.row);
      tokens.push_back(target.token);
    }
    first_row += tree.rows();
    case_lengths_.push_back(tree.lengths);
  }
  const bool targets_only =
      ReadsChoices(loss_.loss()) && std::all_of(case_lengths_.begin(), case_lengths_.end(), ChoosesOneToken);
  head_ = model_.backend().NewTargets(rows_.rows(), rows, tokens, targets_only);
}

void NeighborLoss::MakeReady() {
  if (WholePasses* const passes = model_.backend().whole_passes(); passes != nullptr) {
    device_loss_ = PlaceScoreLoss(loss_, case_lengths_, first_same_, *passes);
  }
  ready_ = true;
}

ScoreLoss::Scores NeighborLoss::ScoresOf(const std::vector<float>& logprobs) const {
  ScoreLoss::Scores scores(case_lengths_.size());
  for (size_t i = 0; i < scores.size(); ++i) scores[i].assign(case_lengths_[i].size(), 0.0);
  for (size_t t = 0; t < targets_.size(); ++t) {
    const Target& target = targets_[t];
    scores[target.case_index][target.continuation] +=
        double{logprobs[t]} / case_lengths_[target.case_index][target.continuation];
  }
  return scores;
}

void NeighborLoss::TakeBase(const std::vector<float>& logprobs) {
  loss_.TakeBase(ScoresOf(logprobs));
  MakeReady();
}

double NeighborLoss::Loss(const std::vector<float>& logprobs, std::vector<float>& dlogprobs) {
  const ScoreLoss::Scores scores = ScoresOf(logprobs);
  ScoreLoss::Scores dscores;
  const double loss = loss_.Evaluate(scores, dscores);
  correct_choices_ = 0;
  bool all_have_choices = true;
  for (size_t i = 0; i < scores.size(); ++i) {
    const std::vector<double>& score = scores[i];
    all_have_choices = all_have_choices && score.size() > 1;
    correct_choices_ += std::max_element(score.begin(), score.end()) - score.begin() == loss_.gold(i);
  }
  if (!all_have_choices) correct_choices_ = -1;
  dlogprobs = TargetDerivatives(dscores);
  return loss;
}

// Choices of one length that begin alike do not depend on their beginning: what they say about its tokens cancels, and
// would be noise if each was rounded to float32 before.
std::vector<float> NeighborLoss::TargetDerivatives(const ScoreLoss::Scores& dscores) const {
  constexpr double kCancels = 1e-12;  // Of the magnitudes added, far above what double rounds.
  std::vector<double> sums(targets_.size()), sizes(targets_.size());
  for (size_t t = 0; t < targets_.size(); ++t) {
    const Target& target = targets_[t];
    const double derivative =
        dscores[target.case_index][target.continuation] / case_lengths_[target.case_index][target.continuation];
    sums[first_same_[t]] += derivative;
    sizes[first_same_[t]] += std::abs(derivative);
  }
  std::vector<float> result(targets_.size());
  for (size_t t = 0; t < sums.size(); ++t) {
    if (std::abs(sums[t]) > kCancels * sizes[t]) result[t] = static_cast<float>(sums[t]);
  }
  return result;
}

absl::Status NeighborLoss::Check(const RoutingOverride& routing) const {
  if (routing.layers.empty() || routing.layers.front() < rows_.first_layer() ||
      routing.values.experts != model_.config().experts ||
      routing.values.layers != static_cast<int>(routing.layers.size())) {
    return absl::InvalidArgumentError("the override's layers or shape are not those of the objective");
  }
  return absl::OkStatus();
}

// Evaluations of one pass, piece by piece: layers up, the LM head, and where a gradient is wanted layers down.
class NeighborLoss::Pass {
 public:
  // An evaluation that takes part, and where its result goes. Null: its result is the objective's base.
  struct Member {
    NeighborLoss* loss;
    const Evaluation* evaluation;
    absl::StatusOr<LossAndGradient>* result;
  };

  Pass(const MoeModel& model, std::vector<Member> members)
      : members_(std::move(members)),
        with_gradient_(members_.front().evaluation->want_gradient),
        head_layers_(model.head_layers()),
        experts_(model.config().experts),
        backend_(model.backend()),
        rows_(model, RowsOf(members_), with_gradient_) {
    for (const Member& member : members_) heads_.push_back(member.loss->head_.get());
  }

  // Of all pieces.
  int64_t cost() const { return rows_.cost() + rows_.rows() * head_layers_; }

  // All pieces at once, as one piece of the device's work; false where the backend has no such passes, or the pass is
  // too large, and nothing ran.
  bool RunWhole() {
    WholePasses* const passes = backend_.whole_passes();
    if (passes == nullptr || rows_.rows() > kWholeRowsMax) return false;
    WholePasses::Pass pass;
    pass.form.push_back(with_gradient_ ? 1 : 0);
    std::vector<const TargetLoss*> losses;
    for (const Member& member : members_) {
      const RoutingOverride& routing = member.evaluation->routing;
      pass.objectives.push_back(member.loss->identity_);
      pass.form.push_back(static_cast<int64_t>(routing.kind));
      pass.form.push_back(static_cast<int64_t>(routing.layers.size()));
      pass.form.insert(pass.form.end(), routing.layers.begin(), routing.layers.end());
      pass.values.push_back(routing.values.weights);
      pass.targets += static_cast<int64_t>(member.loss->targets_.size());
      losses.push_back(member.loss->device_loss_.get());
    }
    pass.sums = with_gradient_ ? rows_.sum_rows() : 0;
    const auto enqueue = [&](const WholePasses::Results& results) {
      while (!rows_.ForwardLayer()) {
      }
      std::unique_ptr<Tape> tape;
      const OwnedMatrix logprobs = backend_.TargetLogprobs(heads_, rows_.hidden(), with_gradient_ ? &tape : nullptr);
      backend_.Copy(logprobs.view(), results.logprobs);
      if (!with_gradient_) return;
      const OwnedMatrix dlogprobs = passes->LossGradient(losses, logprobs);
      rows_.BeginBackward(passes->TargetLogprobsBackward(heads_, *tape, dlogprobs), OwnedMatrix(results.sums, nullptr));
      while (!rows_.BackwardLayer()) {
      }
    };
    std::vector<float> logprobs(static_cast<size_t>(pass.targets));
    std::vector<float> sums(static_cast<size_t>(pass.sums * experts_));
    passes->RunPass(pass, enqueue, absl::MakeSpan(logprobs), absl::MakeSpan(sums));
    TakeLosses(logprobs);
    Deliver(with_gradient_ ? rows_.GradientsOf(sums) : std::vector<Pathway>(members_.size()));
    return true;
  }

  // One piece; true when all results are there.
  bool Advance() {
    switch (next_) {
      case Piece::kUp:
        if (rows_.ForwardLayer()) next_ = Piece::kHead;
        return false;
      case Piece::kHead:
        return RunHead();
      case Piece::kDown:
        if (!rows_.BackwardLayer()) return false;
        Deliver(rows_.gradients());
        return true;
    }
    return true;
  }

  int64_t spent() const { return rows_.spent() + head_spent_; }

 private:
  enum class Piece { kUp, kHead, kDown };

  static std::vector<NeighborPass::Member> RowsOf(const std::vector<Member>& members) {
    std::vector<NeighborPass::Member> rows;
    for (const Member& member : members) rows.push_back({&member.loss->rows_, &member.evaluation->routing});
    return rows;
  }

  bool RunHead() {
    std::unique_ptr<Tape> tape;
    const OwnedMatrix targets = backend_.TargetLogprobs(heads_, rows_.hidden(), with_gradient_ ? &tape : nullptr);
    std::vector<float> logprobs(static_cast<size_t>(targets.view().columns));
    backend_.Read(targets.view(), absl::MakeSpan(logprobs));
    head_spent_ = rows_.rows() * head_layers_;
    const std::vector<float> dlogprobs = TakeLosses(logprobs);
    if (with_gradient_) {
      rows_.BeginBackward(backend_.TargetLogprobsBackward(heads_, *tape, dlogprobs));
      next_ = Piece::kDown;
      return false;
    }
    Deliver(std::vector<Pathway>(members_.size()));
    return true;
  }

  // Of each member; returns dJ/dlogp of all targets.
  std::vector<float> TakeLosses(const std::vector<float>& logprobs) {
    std::vector<float> dlogprobs;
    auto next = logprobs.begin();
    for (const Member& member : members_) {
      const std::vector<float> own(next, next + static_cast<int64_t>(member.loss->targets_.size()));
      std::vector<float> derivatives;
      if (member.result == nullptr) {
        member.loss->TakeBase(own);
        losses_.push_back(0);
      } else {
        losses_.push_back(member.loss->Loss(own, derivatives));
      }
      dlogprobs.insert(dlogprobs.end(), derivatives.begin(), derivatives.end());
      next += static_cast<int64_t>(own.size());
    }
    return dlogprobs;
  }

  void Deliver(std::vector<Pathway> gradients) {
    for (size_t i = 0; i < members_.size(); ++i) {
      if (members_[i].result == nullptr) continue;
      if (std::isfinite(losses_[i])) {
        *members_[i].result = LossAndGradient{losses_[i], std::move(gradients[i])};
      } else {
        *members_[i].result = absl::InternalError("the neighbors' loss is not finite");
      }
    }
  }

  const std::vector<Member> members_;
  const bool with_gradient_;
  const int64_t head_layers_;
  const int64_t experts_;
  Backend& backend_;
  NeighborPass rows_;
  std::vector<const TargetTokens*> heads_;
  Piece next_ = Piece::kUp;
  int64_t head_spent_ = 0;
  std::vector<double> losses_;
};

// Passes one after the other: first that of the bases which objectives still lack.
class NeighborLoss::Run final : public EvaluationRun {
 public:
  Run(const MoeModel& model, std::vector<Evaluation> evaluations)
      : model_(model), evaluations_(std::move(evaluations)), results_(evaluations_.size()) {
    std::vector<Pass::Member> members[3];  // bases, without and with a gradient
    bases_.reserve(evaluations_.size());
    for (size_t i = 0; i < evaluations_.size(); ++i) {
      const Evaluation& evaluation = evaluations_[i];
      auto* loss = dynamic_cast<NeighborLoss*>(evaluation.objective);
      if (loss == nullptr || &loss->model_ != &model) {
        results_[i] = evaluation.Run();
      } else if (const absl::Status status = loss->Check(evaluation.routing); !status.ok()) {
        results_[i] = status;
      } else {
        if (!loss->ready_) members[0].push_back({loss, &bases_.emplace_back(BaseOf(evaluation)), nullptr});
        members[evaluation.want_gradient ? 2 : 1].push_back({loss, &evaluation, &results_[i]});
      }
    }
    for (std::vector<Pass::Member>& pass : members) {
      const auto joins_before = [](const Pass::Member& a, const Pass::Member& b) {
        return a.loss->rows_.entry() < b.loss->rows_.entry();
      };
      std::stable_sort(pass.begin(), pass.end(), joins_before);
      if (!pass.empty()) passes_.push_back(std::move(pass));
    }
  }

  absl::StatusOr<bool> Advance(int64_t row_layers) override {
    const int64_t start = spent_;
    while (!passes_.empty() && spent_ - start < row_layers) {
      try {
        if (!current_) {
          if (!TakeMembers()) continue;
          current_ = std::make_unique<Pass>(model_, passes_.front());
          const int64_t cost = current_->cost();
          if (cost <= row_layers - (spent_ - start) && current_->RunWhole()) {
            spent_ += cost;
            Next();
            continue;
          }
        }
        const int64_t before = current_->spent();
        const bool done = current_->Advance();
        spent_ += current_->spent() - before;
        if (done) Next();
      } catch (const std::exception& error) {
        Fail(ErrorOf(error));
      }
    }
    return passes_.empty();
  }

  int64_t spent() const override { return spent_; }
  std::vector<absl::StatusOr<LossAndGradient>> TakeResults() override { return std::move(results_); }

 private:
  void Next() {
    current_.reset();
    passes_.pop_front();
  }

  // The model alone, where an evaluation has a routing.
  static Evaluation BaseOf(const Evaluation& evaluation) {
    const RoutingOverride& routing = evaluation.routing;
    return {
        evaluation.objective,
        {RoutingOverride::Kind::kLogitShift, routing.layers, Pathway(routing.values.layers, routing.values.experts)},
        /*want_gradient=*/false};
  }

  // Of the next pass, without those whose base failed; false where nobody is left, and the pass is done.
  bool TakeMembers() {
    std::vector<Pass::Member>& members = passes_.front();
    const auto lacks_base = [this](const Pass::Member& member) {
      const bool lacks = member.result != nullptr && !member.loss->ready_;
      if (lacks) *member.result = base_failures_.at(member.loss);
      return lacks;
    };
    members.erase(std::remove_if(members.begin(), members.end(), lacks_base), members.end());
    if (!members.empty()) return true;
    passes_.pop_front();
    return false;
  }

  // What all together have no memory for, one alone may.
  void Fail(const absl::Status& status) {
    const std::vector<Pass::Member> members = std::move(passes_.front());
    Next();
    if (members.size() == 1) {
      const Pass::Member& member = members.front();
      if (member.result != nullptr) {
        *member.result = status;
      } else {
        base_failures_[member.loss] = status;
      }
      return;
    }
    const bool bases = members.front().result == nullptr;  // Which come before all else.
    for (const Pass::Member& member : members) {
      bases ? passes_.push_front({member}) : passes_.push_back({member});
    }
  }

  const MoeModel& model_;
  const std::vector<Evaluation> evaluations_;
  std::vector<Evaluation> bases_;
  std::map<const NeighborLoss*, absl::Status> base_failures_;
  std::vector<absl::StatusOr<LossAndGradient>> results_;
  std::deque<std::vector<Pass::Member>> passes_;  // that are not done; the first is `current_`
  std::unique_ptr<Pass> current_;                 // null: it has not begun
  int64_t spent_ = 0;
};

std::unique_ptr<EvaluationRun> NeighborLoss::NewRun(const MoeModel& model, std::vector<Evaluation> evaluations) {
  return std::make_unique<Run>(model, std::move(evaluations));
}

absl::StatusOr<double> NeighborLoss::Evaluate(const RoutingOverride& routing, Pathway* gradient) {
  const Evaluation alone{this, routing, gradient != nullptr};
  Run run(model_, {alone});
  C3PO_RETURN_IF_ERROR(run.Advance(PiecewiseWork::kToTheEnd).status());
  absl::StatusOr<LossAndGradient> result = std::move(run.TakeResults().front());
  C3PO_RETURN_IF_ERROR(result.status());
  if (gradient != nullptr) *gradient = std::move(result->gradient);
  return result->loss;
}

}  // namespace c3po
