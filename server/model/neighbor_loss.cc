#include "server/model/neighbor_loss.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/model/neighbor_pass.h"

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
  }
  return absl::OkStatus();
}

// Whether an answer is one token out of several.
bool ChoosesOneToken(const std::vector<int>& lengths) {
  return lengths.size() > 1 && std::all_of(lengths.begin(), lengths.end(), [](int length) { return length == 1; });
}

absl::Status ErrorOf(const std::exception& error) {
  return absl::InternalError(absl::StrCat("neighbor loss: ", error.what()));
}

}  // namespace

absl::StatusOr<std::unique_ptr<NeighborLoss>> NeighborLoss::Create(const MoeModel& model, const ObjectiveSpec& spec) {
  C3PO_RETURN_IF_ERROR(CheckSpec(spec, model.shape()));
  try {
    const c10::InferenceMode inference;
    return std::unique_ptr<NeighborLoss>(new NeighborLoss(model, spec));
  } catch (const std::exception& error) {
    return ErrorOf(error);
  }
}

NeighborLoss::NeighborLoss(const MoeModel& model, const ObjectiveSpec& spec)
    : model_(model), loss_(spec.loss), rows_(model, spec) {
  double total = 0;
  for (const NeighborCase& neighbor : spec.cases) total += neighbor.kernel_weight;
  for (const NeighborCase& neighbor : spec.cases) {
    case_weights_.push_back(neighbor.kernel_weight / total);
    case_gold_.push_back(neighbor.gold);
  }
  ChooseTargets(spec);
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
      loss_ == SurrogateLoss::kChoices && std::all_of(case_lengths_.begin(), case_lengths_.end(), ChoosesOneToken);
  head_ = TargetHead::Make(model_, rows_.rows(), rows, tokens, targets_only);
}

// The derivatives of a choice sum to 0. The answer's is minus the sum of the others' rather than its probability less
// 1, which rounding would leave nothing of near 1.
double NeighborLoss::CaseLoss(size_t i, const std::vector<double>& scores, std::vector<double>& dscores) const {
  const auto gold = static_cast<size_t>(case_gold_[i]);
  dscores.assign(scores.size(), 0.0);
  if (loss_ != SurrogateLoss::kChoices || scores.size() == 1) {
    dscores[gold] = -case_weights_[i];
    return -scores[gold];
  }
  const double top = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (double s : scores) sum += std::exp(s - top);
  for (size_t c = 0; c < scores.size(); ++c) {
    if (c == gold) continue;
    dscores[c] = case_weights_[i] * std::exp(scores[c] - top) / sum;
    dscores[gold] -= dscores[c];
  }
  return top + std::log(sum) - scores[gold];
}

double NeighborLoss::Loss(const std::vector<float>& logprobs, std::vector<float>& dlogprobs) {
  std::vector<std::vector<double>> scores(case_weights_.size());  // mean log-likelihood of each continuation
  for (size_t i = 0; i < scores.size(); ++i) scores[i].assign(case_lengths_[i].size(), 0.0);
  for (size_t t = 0; t < targets_.size(); ++t) {
    const Target& target = targets_[t];
    scores[target.case_index][target.continuation] +=
        double{logprobs[t]} / case_lengths_[target.case_index][target.continuation];
  }
  double total = 0;
  correct_choices_ = 0;
  bool all_have_choices = true;
  std::vector<std::vector<double>> dscores(scores.size());
  for (size_t i = 0; i < scores.size(); ++i) {
    const std::vector<double>& score = scores[i];
    total += case_weights_[i] * CaseLoss(i, score, dscores[i]);
    all_have_choices = all_have_choices && score.size() > 1;
    correct_choices_ += std::max_element(score.begin(), score.end()) - score.begin() == case_gold_[i];
  }
  if (!all_have_choices) correct_choices_ = -1;
  dlogprobs = TargetDerivatives(dscores);
  return total;
}

// Choices of one length that begin alike do not depend on their beginning: what they say about its tokens cancels, and
// would be noise if each was rounded to float32 before.
std::vector<float> NeighborLoss::TargetDerivatives(const std::vector<std::vector<double>>& dscores) const {
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

absl::StatusOr<double> NeighborLoss::Evaluate(const RoutingOverride& routing, Pathway* gradient) {
  const Evaluation alone{this, routing, gradient != nullptr};
  absl::StatusOr<LossAndGradient> result = std::move(EvaluateTogether(model_, {alone}).front());
  C3PO_RETURN_IF_ERROR(result.status());
  if (gradient != nullptr) *gradient = std::move(result->gradient);
  return result->loss;
}

std::vector<absl::StatusOr<LossAndGradient>> NeighborLoss::EvaluateTogether(const MoeModel& model,
                                                                            absl::Span<const Evaluation> evaluations) {
  std::vector<absl::StatusOr<LossAndGradient>> results(evaluations.size());
  std::vector<Member> members[2];  // without and with a gradient
  for (size_t i = 0; i < evaluations.size(); ++i) {
    auto* loss = dynamic_cast<NeighborLoss*>(evaluations[i].objective);
    if (loss == nullptr || &loss->model_ != &model) {
      results[i] = evaluations[i].Run();
    } else if (const absl::Status status = loss->Check(evaluations[i].routing); !status.ok()) {
      results[i] = status;
    } else {
      members[evaluations[i].want_gradient ? 1 : 0].push_back({loss, &evaluations[i], &results[i]});
    }
  }
  for (const bool with_gradient : {false, true}) {
    std::vector<Member>& pass = members[with_gradient ? 1 : 0];
    const auto joins_before = [](const Member& a, const Member& b) {
      return a.loss->rows_.entry() < b.loss->rows_.entry();
    };
    std::stable_sort(pass.begin(), pass.end(), joins_before);
    if (!pass.empty()) RunPassOrEachAlone(model, pass, with_gradient);
  }
  return results;
}

// What all together have no memory for, one alone may.
void NeighborLoss::RunPassOrEachAlone(const MoeModel& model, absl::Span<const Member> members, bool with_gradient) {
  absl::Status status;
  try {
    const c10::InferenceMode inference;
    return RunPass(model, members, with_gradient);
  } catch (const std::exception& error) {
    status = ErrorOf(error);
  }
  if (members.size() == 1) {
    *members.front().result = status;
    return;
  }
  for (size_t i = 0; i < members.size(); ++i) RunPassOrEachAlone(model, members.subspan(i, 1), with_gradient);
}

void NeighborLoss::RunPass(const MoeModel& model, absl::Span<const Member> members, bool with_gradient) {
  std::vector<NeighborPass::Member> rows;
  std::vector<const TargetHead*> heads;
  for (const Member& member : members) {
    rows.push_back({&member.loss->rows_, &member.evaluation->routing});
    heads.push_back(&member.loss->head_);
  }
  NeighborPass pass(model, std::move(rows));
  TargetHeadPass head(model, std::move(heads));
  const std::vector<std::vector<float>> logprobs = head.Forward(pass.Forward(), with_gradient);
  std::vector<std::vector<float>> dlogprobs(members.size());
  std::vector<double> losses;
  for (size_t i = 0; i < members.size(); ++i) losses.push_back(members[i].loss->Loss(logprobs[i], dlogprobs[i]));
  std::vector<Pathway> gradients(members.size());
  if (with_gradient) gradients = pass.Backward(head.Backward(dlogprobs));
  for (size_t i = 0; i < members.size(); ++i) {
    if (std::isfinite(losses[i])) {
      *members[i].result = LossAndGradient{losses[i], std::move(gradients[i])};
    } else {
      *members[i].result = absl::InternalError("the neighbors' loss is not finite");
    }
  }
}

}  // namespace c3po
