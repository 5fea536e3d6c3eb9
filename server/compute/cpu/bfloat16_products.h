#ifndef C3PO_SERVER_COMPUTE_CPU_BFLOAT16_PRODUCTS_H_
#define C3PO_SERVER_COMPUTE_CPU_BFLOAT16_PRODUCTS_H_

#include <cstdint>
#include <optional>

#include "server/compute/cpu/matrix_products.h"

namespace c3po::cpu {

// Of the processor, what multiplies pairs of bfloat16 and adds them in float32.
enum class Bfloat16Unit {
  kNone,
  kPlain,   // no unit, but loops that give what kAvx512 gives; slow, on any processor, for tests
  kAvx512,  // AVX-512 BF16: 32 products an instruction
  kAmx,     // AMX-BF16: 16 rows by 16 sums by 32 columns an instruction
};

// The fastest one that this processor has and the operating system allows; asked once. kPlain in place of kNone in a
// build with C3PO_PLAIN_BFLOAT16, else never. Thread-safe.
Bfloat16Unit FastestBfloat16Unit();
// Tests: what FastestBfloat16Unit gives from now on, in the whole process; nothing: what it gave before. Not beside a
// product. A unit that the processor lacks must not be named.
void SetBfloat16UnitForTest(std::optional<Bfloat16Unit> unit);
// "none", "plain", "avx512-bf16", "amx-bf16".
const char* Bfloat16UnitName(Bfloat16Unit unit);

// y[row..row_end, begin..end) = round(x) W^T on the calling thread, W in panels of pairs (panels.h), x rounded to
// bfloat16 and sums in float32, whose order depends on k alone. begin and end are multiples of kPanelRows. The unit
// must be one that the processor has, and not kNone.
void PairDotBlock(Bfloat16Unit unit, const DotProduct& product, int64_t row, int64_t row_end, int64_t begin,
                  int64_t end);
// The same with kPlain.
void PlainPairDotBlock(const DotProduct& product, int64_t row, int64_t row_end, int64_t begin, int64_t end);

}  // namespace c3po::cpu

#endif  // C3PO_SERVER_COMPUTE_CPU_BFLOAT16_PRODUCTS_H_
