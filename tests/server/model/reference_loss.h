#ifndef C3PO_TESTS_SERVER_MODEL_REFERENCE_LOSS_H_
#define C3PO_TESTS_SERVER_MODEL_REFERENCE_LOSS_H_

#include <ATen/ATen.h>

#include <vector>

#include "tests/server/model/neighbor_scenario.h"
#include "tests/server/model/reference_model.h"

namespace c3po {

// J by the oracle, differentiable in `values`. `correct`, unless null, receives how many cases' answer scores highest.
inline at::Tensor ReferenceLoss(const ReferenceModel& reference, const std::vector<NeighborCase>& cases,
                                const Scenario& scenario, const at::Tensor& values, int* correct = nullptr) {
  at::Tensor total = at::zeros({}, values.options().requires_grad(false));
  double weights = 0;
  for (const NeighborCase& neighbor : cases) {
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
      const at::Tensor logprobs = reference.LogProbabilities(
          tokens,
          ReferenceModel::Override{scenario.rule == ApplicationRule::kRouterShift, scenario.layers, values, positions});
      at::Tensor sum = at::zeros({}, values.options().requires_grad(false));
      for (size_t t = 0; t < continuation.size(); ++t) sum = sum + logprobs[last + t][continuation[t]];
      scores.push_back(sum / double(continuation.size()));
    }
    if (correct) *correct += at::stack(scores).argmax().item<int64_t>() == neighbor.gold;
    at::Tensor loss = -scores[neighbor.gold];
    if (scenario.loss == SurrogateLoss::kChoices && scores.size() > 1)
      loss = loss + at::logsumexp(at::stack(scores), 0);
    total = total + neighbor.kernel_weight * loss;
    weights += neighbor.kernel_weight;
  }
  return total / weights;
}

inline at::Tensor ToTensor(const Pathway& pathway, at::ScalarType dtype) {
  float* data = const_cast<float*>(pathway.weights.data());
  return at::from_blob(data, {pathway.layers, pathway.experts}, at::kFloat).to(dtype).clone();
}

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_MODEL_REFERENCE_LOSS_H_
