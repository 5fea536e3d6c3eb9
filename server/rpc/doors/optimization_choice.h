#ifndef C3PO_SERVER_RPC_DOORS_OPTIMIZATION_CHOICE_H_
#define C3PO_SERVER_RPC_DOORS_OPTIMIZATION_CHOICE_H_

// How a request of a foreign protocol, which has no field for it, chooses its optimization. Nothing chosen: what a
// request of c3po.v1 gets that sets nothing, the server's defaults with the default collection's profile. Pure and
// thread-safe.

#include <grpcpp/support/string_ref.h>

#include <map>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "c3po/v1/options.pb.h"

namespace c3po {

// Metadata of a call.
inline constexpr absl::string_view kCollectionKey = "c3po-collection";  // A collection's name: its profile applies.
inline constexpr absl::string_view kMethodKey = "c3po-method";          // A method's word, "ngd", or its name.
inline constexpr absl::string_view kMinGenerationKey = "c3po-min-generation";  // OptimizationOptions' own, a number.

// InvalidArgument "KEY: ...": given twice, empty, no method's word or no number; and any other key that begins with
// "c3po-", so that a misspelled one is not passed over.
absl::StatusOr<v1::OptimizationOptions> OptimizationFromMetadata(
    const std::multimap<grpc::string_ref, grpc::string_ref>& metadata);

// A method by its word, "ngd", or its name. InvalidArgument "FIELD: is none of ...".
absl::StatusOr<v1::Method> MethodOfWord(absl::string_view field, absl::string_view word);

// Of a protocol whose requests name the model: MODEL, or MODEL@COLLECTION, whose profile then applies. `served` is the
// model's name, which may have an "@" itself. NotFound "FIELD: ...": another model. InvalidArgument: no collection, or
// another one than `options` has.
absl::Status ChooseByModelName(absl::string_view field, absl::string_view name, absl::string_view served,
                               v1::OptimizationOptions& options);

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_DOORS_OPTIMIZATION_CHOICE_H_
