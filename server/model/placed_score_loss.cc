#include "server/model/placed_score_loss.h"

namespace c3po {

std::shared_ptr<const TargetLoss> PlaceScoreLoss(const ScoreLoss& loss, const std::vector<std::vector<int>>& lengths,
                                                 const std::vector<size_t>& first_same, WholePasses& passes) {
  std::vector<int32_t> gold, case_begin{0}, target_begin{0}, pair_begin{0};
  for (const std::vector<int>& of_case : lengths) {
    for (const int length : of_case) target_begin.push_back(target_begin.back() + length);
    case_begin.push_back(static_cast<int32_t>(target_begin.size()) - 1);
  }
  std::vector<ContinuationLoss::Partner> partners;
  std::vector<double> pair_weights, base;
  for (size_t i = 0; i < lengths.size(); ++i) {
    gold.push_back(loss.gold(i));
    for (const ScoreLoss::Partner& partner : loss.partners()[i]) {
      const auto j = static_cast<size_t>(partner.case_index);
      partners.push_back(
          {case_begin[i] + partner.own_other, case_begin[j] + loss.gold(j), case_begin[j] + partner.other});
      pair_weights.push_back(partner.weight);
    }
    pair_begin.push_back(static_cast<int32_t>(partners.size()));
  }
  for (const std::vector<double>& of_case : loss.BaseProbabilities()) {
    base.insert(base.end(), of_case.begin(), of_case.end());
  }
  const std::vector<int32_t> same(first_same.begin(), first_same.end());
  return passes.NewTargetLoss({loss.loss(), loss.case_weights(), gold, case_begin, target_begin, same, pair_begin,
                               partners, pair_weights, loss.trust(), base});
}

}  // namespace c3po
