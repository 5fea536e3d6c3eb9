#ifndef C3PO_SERVER_PIPELINE_MEMORY_FIT_H_
#define C3PO_SERVER_PIPELINE_MEMORY_FIT_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/types/model_runner.h"

namespace c3po {

struct MemoryFit {
  int64_t bytes = 0;    // that the optimization over what is left takes at most
  bool fits = true;     // false: not even the nearest neighbor does
  std::string warning;  // where neighbors were left out
};

// "needs about 12 MiB of working memory, and WHO may have 8 (--work-memory-mb)". Needs are rounded up and limits down,
// so that a need above its limit never reads as one that is not.
std::string MemoryNeed(int64_t needed_bytes, absl::string_view who, int64_t limit_bytes);

// Leaves out neighbors until the optimization over the rest takes no more than `limit` bytes: those that are held out
// first, and the farthest first, which stand last. `part_of`: the part of each fitted neighbor, where there are several
// (SpecsOfParts). Their evaluations run side by side, so that the bytes of all parts add up, and those of the held-out
// neighbors, which each part evaluates, count once a part. InvalidArgument "optimization.prompt_positions: ..." where
// more than one position is asked for, since with fewer it could be served; "continuations: ..." for the request that
// is its own neighbor (`oracle`).
absl::StatusOr<MemoryFit> FitIntoMemory(const ModelRunner& model, int64_t limit, int prompt_positions, bool oracle,
                                        ObjectiveSpec& fitted, ObjectiveSpec& held_out,
                                        absl::Span<const int> part_of = {});

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_MEMORY_FIT_H_
