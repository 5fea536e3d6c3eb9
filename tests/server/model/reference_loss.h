#ifndef C3PO_TESTS_SERVER_MODEL_REFERENCE_LOSS_H_
#define C3PO_TESTS_SERVER_MODEL_REFERENCE_LOSS_H_

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "tests/server/model/neighbor_scenario.h"
#include "tests/server/model/reference_model.h"

namespace c3po {

// The mean log-probability of each of a case's continuations: under `values`, or of the model alone.
inline at::Tensor ReferenceScores(const ReferenceModel& reference, const NeighborCase& neighbor,
                                  const Scenario& scenario, const at::Tensor* values) {
  std::vector<at::Tensor> scores;
  for (const std::vector<int32_t>& continuation : neighbor.continuations) {
    std::vector<int32_t> tokens = neighbor.prompt;
    tokens.insert(tokens.end(), continuation.begin(), continuation.end() - 1);
    std::vector<bool> positions(tokens.size(), false);
    const size_t last = neighbor.prompt.size() - 1;
    for (size_t t = 0; t < tokens.size(); ++t) {
      if (t + static_cast<size_t>(scenario.prompt_positions) <= last) continue;
      positions[t] = t <= last || scenario.rule != ApplicationRule::kLastPromptToken;
    }
    std::optional<ReferenceModel::Override> routing;
    if (values) {
      routing =
          ReferenceModel::Override{scenario.rule == ApplicationRule::kRouterShift, scenario.layers, *values, positions};
    }
    const at::Tensor logprobs = reference.LogProbabilities(tokens, routing);
    at::Tensor sum = at::zeros({}, logprobs.options().requires_grad(false));
    for (size_t t = 0; t < continuation.size(); ++t) sum = sum + logprobs[last + t][continuation[t]];
    scores.push_back(sum / double(continuation.size()));
  }
  return at::stack(scores);
}

// What of a case's scores the trust region compares.
inline at::Tensor ReferenceProbabilities(const at::Tensor& scores) {
  return scores.numel() > 1 ? at::softmax(scores, 0) : at::stack({scores[0].exp(), 1 - scores[0].exp()});
}

// Over the pairs of cases with the same choices and different answers; undefined where there are none.
inline at::Tensor ReferencePairLoss(const std::vector<NeighborCase>& cases, const std::vector<at::Tensor>& scores) {
  at::Tensor total;
  double weights = 0;
  for (size_t i = 0; i < cases.size(); ++i) {
    for (size_t j = i + 1; j < cases.size(); ++j) {
      std::vector<std::vector<int32_t>> a = cases[i].continuations, b = cases[j].continuations;
      const std::vector<int32_t> answer = a[cases[i].gold], other = b[cases[j].gold];
      const auto margin = [&](size_t of) {
        const auto& own = cases[of].continuations;
        const auto at = [&](const std::vector<int32_t>& choice) {
          return scores[of][std::find(own.begin(), own.end(), choice) - own.begin()];
        };
        return at(answer) - at(other);
      };
      std::sort(a.begin(), a.end());
      std::sort(b.begin(), b.end());
      if (a != b || answer == other) continue;
      const double weight = cases[i].kernel_weight * cases[j].kernel_weight;
      const at::Tensor loss = weight * at::log(1 + at::exp(-(margin(i) - margin(j))));
      total = total.defined() ? total + loss : loss;
      weights += weight;
    }
  }
  return total.defined() ? total / weights : total;
}

// J by the oracle, differentiable in `values`. `correct`, unless null, receives how many cases' answer scores highest.
inline at::Tensor ReferenceLoss(const ReferenceModel& reference, const std::vector<NeighborCase>& cases,
                                const Scenario& scenario, const at::Tensor& values, int* correct = nullptr) {
  at::Tensor total = at::zeros({}, values.options().requires_grad(false)), divergence = total;
  double weights = 0;
  std::vector<at::Tensor> all_scores;
  for (const NeighborCase& neighbor : cases) {
    const at::Tensor scores = ReferenceScores(reference, neighbor, scenario, &values);
    if (correct) *correct += scores.argmax().item<int64_t>() == neighbor.gold;
    at::Tensor loss = -scores[neighbor.gold];
    if (scenario.loss != SurrogateLoss::kAnswer && scores.numel() > 1) loss = loss + at::logsumexp(scores, 0);
    total = total + neighbor.kernel_weight * loss;
    weights += neighbor.kernel_weight;
    if (scenario.trust > 0) {
      const at::Tensor base = ReferenceProbabilities(ReferenceScores(reference, neighbor, scenario, nullptr));
      const at::Tensor ratio = base.log() - ReferenceProbabilities(scores).log();
      divergence = divergence + neighbor.kernel_weight * (base * ratio).sum();
    }
    all_scores.push_back(scores);
  }
  const at::Tensor pairs = scenario.loss == SurrogateLoss::kPairs ? ReferencePairLoss(cases, all_scores) : at::Tensor();
  return (pairs.defined() ? pairs : total / weights) + scenario.trust * divergence / weights;
}

inline at::Tensor ToTensor(const Pathway& pathway, at::ScalarType dtype) {
  float* data = const_cast<float*>(pathway.weights.data());
  return at::from_blob(data, {pathway.layers, pathway.experts}, at::kFloat).to(dtype).clone();
}

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_MODEL_REFERENCE_LOSS_H_
