#ifndef C3PO_CLIENT_EVAL_CALIBRATION_GATE_H_
#define C3PO_CLIENT_EVAL_CALIBRATION_GATE_H_

#include <cstddef>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "c3po/v1/options.pb.h"
#include "client/eval/item_result.h"

namespace c3po {

// The gate's thresholds that a calibration chooses from recorded answers, without asking again. Lists of optimized
// answers and of the model's own are of the same questions, in the same order. All functions are pure.
struct GateThresholds {
  double distance = std::numeric_limits<double>::infinity();    // skip when the nearest neighbor is farther
  double confidence = std::numeric_limits<double>::infinity();  // skip when the model is at least so sure, in (0, 1]
  double optimized_confidence = 0;  // revert when the optimized model is less sure, in (0, 1]

  bool any() const;
  // Whether the request gets the model's own answer. The model's own confidence is known only where every choice is one
  // token, so that the answers' own probabilities are that confidence.
  bool Skips(const ItemResult& optimized, const ItemResult& none) const;
  std::string Describe() const;                          // empty where there is none
  void WriteTo(v1::OptimizationOptions* options) const;  // Sets what it has, and gate.enabled.
};

// The answers that requests get: the model's own where the gate skips, at the seconds of the optimized ones.
std::vector<ItemResult> Gated(const GateThresholds& gate, const std::vector<ItemResult>& optimized,
                              const std::vector<ItemResult>& none);

// Which of a list's answers count as right.
using JudgeAnswers = std::function<std::vector<bool>(const std::vector<ItemResult>&)>;

// One of the three thresholds, which halves the worsened answers at least, by three or more, and leaves nine tenths of
// the ungated lift; of several the one with the fewest worsened answers. None where no threshold does. There are a few
// dozen questions: a weaker rule finds a gate by chance, and so would several thresholds at once.
GateThresholds ChooseGate(const std::vector<ItemResult>& optimized, const std::vector<ItemResult>& none,
                          const JudgeAnswers& right);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_CALIBRATION_GATE_H_
