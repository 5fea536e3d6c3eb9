#ifndef C3PO_CLIENT_EVAL_METHOD_H_
#define C3PO_CLIENT_EVAL_METHOD_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "c3po/v1/options.pb.h"
#include "c3po/v1/server.pb.h"

namespace c3po {

enum class MethodKind {
  kScore,         // Asked of the server with the method's options.
  kInContext,     // The neighbors' prompts and answers stand before the prompt; no optimization.
  kNeighborVote,  // The neighbors' answers vote; no model runs.
};
// "score", "icl", "knn_vote": the names in run.json.
const char* MethodKindName(MethodKind kind);

// One way to answer, with a row of its own in every table.
struct EvalMethod {
  std::string label;  // unique within a run
  MethodKind kind = MethodKind::kScore;
  // What requests carry. Of the two other kinds, the fields that say which neighbors and how they weigh: k or epsilon,
  // reference_selection, kernel and bandwidth. Those that are not set are as a request's over the same collection.
  v1::OptimizationOptions optimization;
  std::string collection_suffix;  // The task's collection with this behind it is asked: a subset of its references.
  uint32_t shots = 0;             // kInContext: neighbors before the prompt; 0: as many as an optimizing method has
};

// What methods are made with.
struct MethodContext {
  v1::OptimizationOptions common;  // set by the user for all methods that optimize
  v1::GetServerInfoResponse server;
  uint32_t shots = 0;  // of icl; 0: not set
};

// The names that MakeMethod knows.
std::vector<std::string> MethodNames();

// Makes a method by its name, or "LABEL=NAME" under another label:
//   none                 the model as it is
//   mode, kernel, ngd, amortized, prior, oracle    that method with `common`; fields that are not set are the
//                        collection's profile's, then the server's
//   pairs                ngd on the loss over pairs of neighbors with different answers, which no bias of a label
//   lowers profile              what a request gets that asks for nothing paper                arXiv 2504.07964:
//   gradient descent on the mixing weights of 20 core experts in the last 5
//                        layers at the last prompt token, 10 steps, 3 successful neighbors, Gaussian kernel, no gate
//   public-code          the authors' published code: the similarity-weighted mean of the 3 nearest references' weights
//                        over all experts of the last 5 layers, at each new token. That is kernel regression with
//                        alpha = 0 and the inner product as kernel, which the request asks for
//   offset               none, with the collection's label offset on the choices' scores (use_offset)
//   NAME+offset          a method above but oracle, with the label offset that was fitted after it: ngd+offset
//   icl                  in-context learning: the neighbors, or `shots` of them, before the prompt
//   knn                  the label vote of the neighbors
// The neighbors of icl and knn are those of ngd: `common`, then the collection's profile, then the server's. none,
// profile, paper, public-code and offset do not take `common`. InvalidArgument for other names.
absl::StatusOr<EvalMethod> MakeMethod(absl::string_view name, const MethodContext& context);

// All of a list, then settings "LABEL.field=value" (option_setting.h). InvalidArgument: an unknown name, a label twice,
// a setting of no method.
absl::StatusOr<std::vector<EvalMethod>> MakeMethods(absl::Span<const std::string> names,
                                                    absl::Span<const std::string> settings,
                                                    const MethodContext& context);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_METHOD_H_
