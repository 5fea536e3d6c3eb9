#ifndef C3PO_CLIENT_EVAL_COLLECTION_IMPORT_H_
#define C3PO_CLIENT_EVAL_COLLECTION_IMPORT_H_

#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "c3po/v1/reference.pb.h"
#include "client/c3po_client.h"

namespace c3po {

// Adds the samples to a collection and gives their ids, in the same order; those that are there already give the stored
// one's. `on_progress` is told after each batch how many have their verdict. InvalidArgument for a sample that the
// server calls malformed ("sample 17: why", counted from 1); else the server's errors.
absl::StatusOr<std::vector<std::string>> ImportSamples(Client& client, const std::string& collection,
                                                       absl::Span<const v1::ReferenceSample> samples,
                                                       absl::FunctionRef<void(size_t)> on_progress,
                                                       const CallOptions& options);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_COLLECTION_IMPORT_H_
