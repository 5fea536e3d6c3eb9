#ifndef C3PO_CLIENT_EVAL_ABLATION_H_
#define C3PO_CLIENT_EVAL_ABLATION_H_

#include <cstddef>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "c3po/v1/reference.pb.h"
#include "client/eval/method.h"
#include "client/eval/run_folder.h"

namespace c3po {

// One variable of C3PO moved over its range, everything else held.
struct AblationPlan {
  AblationAxis axis;
  std::vector<EvalMethod> methods;  // "none", then one per point
  // Of reference-set-size: how many references each temporary collection holds, and what stands behind the collection's
  // name. Without the point of all references, which is the collection itself.
  std::vector<size_t> sizes;
};

// layers-suffix, layers-single, core-experts, k, epsilon, kernel, steps, learning-rate, rule, selection, objective,
// reference-set-size, step-rule, prompt-positions, trust, balance, neighborhoods, neighbor-source.
std::vector<std::string> AblationVariables();

// The points of one variable, `base` being the method that is varied. `values` (of the variable's kind: numbers, or the
// .proto's short names; for layers-suffix how many layers, for layers-single their numbers) stand in place of the
// default points. Layers and experts come from the server; `references` bounds the set sizes. InvalidArgument: another
// variable, or a value that it cannot take.
absl::StatusOr<AblationPlan> PlanAblation(absl::string_view variable, absl::Span<const std::string> values,
                                          const EvalMethod& base, const v1::GetServerInfoResponse& server,
                                          size_t references);

// ".size50"
std::string SizeSuffix(size_t size);

// The first `size` of the samples in the seed's order: a smaller subset is part of a larger one.
std::vector<v1::ReferenceSample> ReferenceSubset(absl::Span<const v1::ReferenceSample> samples, size_t size,
                                                 uint64_t seed);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_ABLATION_H_
