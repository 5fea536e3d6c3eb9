#ifndef C3PO_TESTS_CLIENT_SIMULATED_MODEL_H_
#define C3PO_TESTS_CLIENT_SIMULATED_MODEL_H_

#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include "client/eval/calibration.h"

namespace c3po {

// Answers questions whose choices are labels, with scores drawn from a seed: the label c of question i gets
//   s_ic = separation [c = gold_i] + bias_c + noise_ic,   noise of mean 0 and variance 1/2,
// so that a margin between two labels has the variance 1. Right labels go round. Draws depend on the seed, the
// question, the label and the stream alone; streams are independent of each other.
class SimulatedModel : public CalibrationScorer {
 public:
  struct Scores {
    double separation = 0;
    std::vector<double> bias;  // [labels]
    // Part of the noise that is the model's own (stream 0), in [0, 1]; the rest is of `stream`. Same variance.
    double own_noise = 1;
    uint64_t stream = 0;
  };
  // What the model says under these options.
  using Formula = std::function<Scores(const v1::OptimizationOptions&)>;

  SimulatedModel(uint64_t seed, size_t labels, Formula formula)
      : seed_(seed), labels_(labels), formula_(std::move(formula)) {}

  absl::StatusOr<std::vector<ItemResult>> Score(const v1::OptimizationOptions& options,
                                                absl::Span<const size_t> questions) override {
    const Scores of = formula_(options);
    std::vector<ItemResult> results;
    for (const size_t question : questions) {
      ItemResult result;
      result.gold = static_cast<int>(question % labels_);
      for (size_t c = 0; c < labels_; ++c) {
        const double noise = of.own_noise * Normal(question, c, 0) +
                             std::sqrt(1 - of.own_noise * of.own_noise) * Normal(question, c, of.stream);
        const double right = static_cast<int>(c) == result.gold ? of.separation : 0;
        result.log_likelihoods.push_back(right + of.bias[c] + noise * std::sqrt(0.5) - 10);
        result.token_counts.push_back(1);
        result.byte_counts.push_back(1);
        if (result.predicted < 0 || result.log_likelihoods[c] > result.log_likelihoods[result.predicted]) {
          result.predicted = static_cast<int>(c);
        }
      }
      result.correct = result.predicted == result.gold;
      result.seconds = options.method() == v1::METHOD_NONE ? 0.1 : 0.3;
      results.push_back(std::move(result));
    }
    return results;
  }

  // All questions have the labels as their choices, in one order.
  QuestionLabels LabelsOf(size_t questions) const {
    QuestionLabels labels;
    labels.labels = labels_;
    std::vector<int> in_order;
    for (size_t c = 0; c < labels_; ++c) in_order.push_back(static_cast<int>(c));
    labels.of_choices.assign(questions, in_order);
    return labels;
  }

 private:
  // In (0, 1), by SplitMix64 of all that it depends on.
  double Uniform(uint64_t question, uint64_t label, uint64_t stream, uint64_t part) const {
    uint64_t z = seed_;
    for (const uint64_t each : {question, label, stream, part}) {
      z += each * 0xbf58476d1ce4e5b9u + 0x9e3779b97f4a7c15u;
      z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
      z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
      z ^= z >> 31;
    }
    return (static_cast<double>(z >> 11) + 0.5) * 0x1.0p-53;
  }

  // Box and Muller.
  double Normal(uint64_t question, uint64_t label, uint64_t stream) const {
    constexpr double kTwoPi = 6.283185307179586;
    return std::sqrt(-2 * std::log(Uniform(question, label, stream, 0))) *
           std::cos(kTwoPi * Uniform(question, label, stream, 1));
  }

  const uint64_t seed_;
  const size_t labels_;
  const Formula formula_;
};

}  // namespace c3po

#endif  // C3PO_TESTS_CLIENT_SIMULATED_MODEL_H_
