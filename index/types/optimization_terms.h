#ifndef C3PO_INDEX_TYPES_OPTIMIZATION_TERMS_H_
#define C3PO_INDEX_TYPES_OPTIMIZATION_TERMS_H_

// The closed choices of an optimization and their words. Server and client read the same rows: flags, the wire,
// metrics, the log and reports cannot drift apart. A new choice is a value, a row and a value in options.proto; tests
// compare all three.

#include <cstddef>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace c3po {

// How a pathway is found.
enum class Method {
  kNone,
  kModeFinding,
  kKernelRegression,
  kNeighborhoodGradientDescent,
  kAmortizedShift,   // kernel mean of the neighbors' own shifts
  kCollectionPrior,  // the collection's shift alone
  kOracle,           // gradient descent on the request's own answer
};

// K(a, b) as a function of the Euclidean distance d = ||a - b|| >= 0 and the width sigma > 0.
enum class Kernel {
  kGaussian,    // exp(-d^2 / 2 sigma^2)
  kMatern,      // Matern 5/2: (1 + s + s^2 / 3) exp(-s), s = sqrt(5) d / sigma
  kLinear,      // max(0, 1 - d^2 / 2): the inner product of unit vectors; sigma unused
  kPolynomial,  // (1 + <a, b>)^2 with <a, b> = 1 - d^2 / 2; sigma unused
};

// Which positions an optimized pathway governs (METHOD: "application rule").
enum class ApplicationRule {
  kLastPromptToken,  // Weights at the last prompt token only.
  kEveryNewToken,    // The same weights also at each token fed back while decoding.
  kRouterShift,      // Logit shift at the last prompt token and each token fed back.
};

// Which references may be neighbors.
enum class ReferenceSelection {
  kSuccessful,  // those that the model answers correctly by itself
  kAll,
};

enum class SurrogateLoss {
  kAnswer,   // mean negative log-likelihood of the answer's tokens
  kChoices,  // cross-entropy over the choices' length-normalized log-likelihoods; kAnswer for a case with one
             // continuation
  kPairs,    // log(1 + exp(-(m_i - m_j))) over pairs of cases with the same choices and different answers
             // (model/pair_loss.h)
};

// By which vectors references and a request are near each other.
enum class NeighborSource {
  kEmbedding,      // the sentence encoder's
  kCriticalLayer,  // hidden states entering the first critical layer, at the last prompt token
  kLastLayer,      // hidden states after the last layer, there
};

enum class StepRule {
  kGradient,    // theta -= rate * g
  kNormalized,  // theta -= rate * g / ||g||, the norm over all layers and experts
  kAdam,        // Adam, beta 0.9 and 0.999, epsilon 1e-8
};

// What became of a pathway.
enum class GateDecision {
  kApplied,
  kNotRequested,
  kSkippedNoNeighbors,
  kSkippedNeighborsFar,
  kSkippedBaseConfident,
  kRevertedLossNotReduced,
  kRevertedValidationLossNotReduced,
  kRevertedNotConfident,
};

// One value of a choice.
template <typename Value>
struct Term {
  Value value;
  int number;  // in options.proto
  const char*
      name;  // there, in lower case without the enum's prefix; label of metrics, and word of the log and reports
  const char* flag;  // the word of flags; what only the server says has none: ""
};

namespace terms {

inline constexpr Term<Method> kMethods[] = {
    {Method::kNone, 1, "none", "none"},
    {Method::kNeighborhoodGradientDescent, 4, "neighborhood_gradient_descent", "ngd"},
    {Method::kModeFinding, 2, "mode_finding", "mode"},
    {Method::kKernelRegression, 3, "kernel_regression", "kernel"},
    {Method::kAmortizedShift, 5, "amortized_shift", "amortized"},
    {Method::kCollectionPrior, 6, "collection_prior", "prior"},
    {Method::kOracle, 7, "oracle", "oracle"},
};
inline constexpr Term<Kernel> kKernels[] = {
    {Kernel::kGaussian, 1, "gaussian", "gaussian"},
    {Kernel::kMatern, 2, "matern", "matern"},
    {Kernel::kLinear, 3, "linear", "linear"},
    {Kernel::kPolynomial, 4, "polynomial", "polynomial"},
};
inline constexpr Term<ApplicationRule> kApplicationRules[] = {
    {ApplicationRule::kLastPromptToken, 1, "last_prompt_token", "last"},
    {ApplicationRule::kEveryNewToken, 2, "every_new_token", "every"},
    {ApplicationRule::kRouterShift, 3, "router_shift", "shift"},
};
inline constexpr Term<ReferenceSelection> kReferenceSelections[] = {
    {ReferenceSelection::kSuccessful, 1, "successful", "successful"},
    {ReferenceSelection::kAll, 2, "all", "all"},
};
inline constexpr Term<SurrogateLoss> kObjectives[] = {
    {SurrogateLoss::kAnswer, 1, "answer", "answer"},
    {SurrogateLoss::kChoices, 2, "choices", "choices"},
    {SurrogateLoss::kPairs, 3, "pairs", "pairs"},
};
inline constexpr Term<NeighborSource> kNeighborSources[] = {
    {NeighborSource::kEmbedding, 1, "embedding", "embedding"},
    {NeighborSource::kCriticalLayer, 2, "critical_layer", "critical"},
    {NeighborSource::kLastLayer, 3, "last_layer", "last"},
};
inline constexpr Term<StepRule> kStepRules[] = {
    {StepRule::kGradient, 1, "gradient", "gradient"},
    {StepRule::kNormalized, 2, "normalized", "normalized"},
    {StepRule::kAdam, 3, "adam", "adam"},
};
inline constexpr Term<GateDecision> kGateDecisions[] = {
    {GateDecision::kApplied, 1, "applied", ""},
    {GateDecision::kNotRequested, 2, "not_requested", ""},
    {GateDecision::kSkippedNoNeighbors, 3, "skipped_no_neighbors", ""},
    {GateDecision::kSkippedNeighborsFar, 4, "skipped_neighbors_far", ""},
    {GateDecision::kSkippedBaseConfident, 5, "skipped_base_confident", ""},
    {GateDecision::kRevertedLossNotReduced, 6, "reverted_loss_not_reduced", ""},
    {GateDecision::kRevertedValidationLossNotReduced, 7, "reverted_validation_loss_not_reduced", ""},
    {GateDecision::kRevertedNotConfident, 8, "reverted_not_confident", ""},
};

template <typename Value>
struct Rows;  // `kOf`: the rows of a choice, and `kEnum`: its enum's name in options.proto.
template <>
struct Rows<Method> {
  static constexpr absl::Span<const Term<Method>> kOf = kMethods;
  static constexpr absl::string_view kEnum = "Method";
};
template <>
struct Rows<Kernel> {
  static constexpr absl::Span<const Term<Kernel>> kOf = kKernels;
  static constexpr absl::string_view kEnum = "Kernel";
};
template <>
struct Rows<ApplicationRule> {
  static constexpr absl::Span<const Term<ApplicationRule>> kOf = kApplicationRules;
  static constexpr absl::string_view kEnum = "ApplicationRule";
};
template <>
struct Rows<ReferenceSelection> {
  static constexpr absl::Span<const Term<ReferenceSelection>> kOf = kReferenceSelections;
  static constexpr absl::string_view kEnum = "ReferenceSelection";
};
template <>
struct Rows<SurrogateLoss> {
  static constexpr absl::Span<const Term<SurrogateLoss>> kOf = kObjectives;
  static constexpr absl::string_view kEnum = "Objective";
};
template <>
struct Rows<NeighborSource> {
  static constexpr absl::Span<const Term<NeighborSource>> kOf = kNeighborSources;
  static constexpr absl::string_view kEnum = "NeighborSource";
};
template <>
struct Rows<StepRule> {
  static constexpr absl::Span<const Term<StepRule>> kOf = kStepRules;
  static constexpr absl::string_view kEnum = "StepRule";
};
template <>
struct Rows<GateDecision> {
  static constexpr absl::Span<const Term<GateDecision>> kOf = kGateDecisions;
  static constexpr absl::string_view kEnum = "GateDecision";
};

}  // namespace terms

// The rows of a choice, in the order in which messages and help list them. Pure, as all of this file.
template <typename Value>
constexpr absl::Span<const Term<Value>> TermsOf() {
  return terms::Rows<Value>::kOf;
}

// The place of a value's row.
template <typename Value>
constexpr size_t TermIndex(Value value) {
  size_t index = 0;
  while (TermsOf<Value>()[index].value != value) ++index;
  return index;
}

// A value's row. Every value has one.
template <typename Value>
constexpr const Term<Value>& TermOf(Value value) {
  return TermsOf<Value>()[TermIndex(value)];
}

// The row with the word of a flag, or with a number in options.proto; null where there is none.
template <typename Value>
constexpr const Term<Value>* TermOfFlag(absl::string_view flag) {
  for (const Term<Value>& term : TermsOf<Value>()) {
    if (!flag.empty() && flag == term.flag) return &term;
  }
  return nullptr;
}
template <typename Value>
constexpr const Term<Value>* TermOfNumber(int number) {
  for (const Term<Value>& term : TermsOf<Value>()) {
    if (number == term.number) return &term;
  }
  return nullptr;
}

}  // namespace c3po

#endif  // C3PO_INDEX_TYPES_OPTIMIZATION_TERMS_H_
