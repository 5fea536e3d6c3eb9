#ifndef C3PO_SERVER_COMPUTE_CPU_STORED_GROUPS_H_
#define C3PO_SERVER_COMPUTE_CPU_STORED_GROUPS_H_

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "server/compute/cpu/quantized_panels.h"
#include "server/weights/host_matrix.h"

namespace c3po::cpu {

// Of rows [begin, end) of a stored matrix, 16 at most, each group of columns, as quantized_panels.h has it: the groups
// are those of QuantizedCut::Of with this column unit, and what a group lacks of 32 columns is 0. Pure and thread-safe;
// `take` is called by the calling thread, with group and rows, row `begin` being the first of 16.
using TakeGroups = absl::FunctionRef<void(int64_t group, const QuantizedGroups& rows)>;

// By the scales that QuantizeGroups finds; `roots` as there, of all columns. False where a weight cannot be held.
bool QuantizeRows(WeightLayout layout, const HostMatrix& from, int64_t begin, int64_t end, int64_t column_unit,
                  const float* roots, TakeGroups take);
// By the scales and levels that are stored, where they are packed levels of this layout, which have no ScaleProblem and
// units of 16 columns; else as QuantizeRows.
bool GroupsOf(WeightLayout layout, const HostMatrix& from, int64_t begin, int64_t end, int64_t column_unit,
              const float* roots, TakeGroups take);

// Square roots of what columns weigh, by the largest of it, as QuantizeGroups takes them; empty: all weigh the same, as
// where all are 0 or `squares` is empty.
std::vector<float> RootsOf(absl::Span<const float> squares);

// The layout of packed levels; kRows: another type.
WeightLayout PackedLayoutOf(DType type);

}  // namespace c3po::cpu

#endif  // C3PO_SERVER_COMPUTE_CPU_STORED_GROUPS_H_
