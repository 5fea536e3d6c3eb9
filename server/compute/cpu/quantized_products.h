#ifndef C3PO_SERVER_COMPUTE_CPU_QUANTIZED_PRODUCTS_H_
#define C3PO_SERVER_COMPUTE_CPU_QUANTIZED_PRODUCTS_H_

#include <cstdint>
#include <optional>

#include "server/compute/cpu/matrix_products.h"

namespace c3po::cpu {

// The blocks of MultiplyTransposed and MultiplyAdd where the weights are quantized (quantized_panels.h), on the calling
// thread. What matrix_products.h promises of them holds: the order of an element's sum depends on n and k alone.

// y[row..row_end, begin..end) = x W^T of whole panels' rows: begin where a panel begins, end likewise or the last row.
//   rounds_activations   x is rounded to integers, a scale for each group of columns: of 16 bits where weights are
//                        kInt8, of 8 bits where they are kInt4 (RoundRow16, RoundRow8). Of each group the products are
//                        added up exactly, and
//                          y += s (x's scale * sum),    ascending by group, in float32;
//                        the outer product and sum are one fused operation on processors that have it. So y is the
//                        same bits on all of these, and on all that have none.
//   else                 x stays: with kVnni as three digits a number (digit_products.h), else weights are widened to
//                        float32, exactly, a few panels at a time in cache.
// `job`: 0, or a number of some calls, of which those with the same product (by address) and rows find the same x: a
// thread then rounds it once.
void QuantizedDotBlock(const DotProduct& product, int64_t row, int64_t row_end, int64_t begin, int64_t end,
                       int64_t job);
// y[:, begin..end) += a W, for all rows: activations as they are, weights widened in registers. With a panel's scales s
//   y[k] += sum_n (a[n] s[n]) level[n, k],    in float32, the same in any batch.
void QuantizedOuterColumns(const OuterProduct& product, int64_t begin, int64_t end);

// Row `row` of a quantized matrix, widened, to out [columns].
void CopyQuantizedRow(const WeightView& w, int64_t row, float* out);

// What multiplies integers of 16 or 8 bits and adds them up.
enum class IntegerUnit {
  kVectors,  // the vectors of the instruction set in use
  kVnni,     // AVX-512 VNNI
};
// kVnni where this processor has it; asked once. Thread-safe.
IntegerUnit FastestIntegerUnit();
// Tests: what FastestIntegerUnit gives from now on; nothing: what it gave before. Not beside a product.
void SetIntegerUnitForTest(std::optional<IntegerUnit> unit);

// Activations of some rows, rounded for weights of a layout, as the units below read them.
struct RoundedActivations {
  const void* q;           // [rows, groups * 32]: for kInt8 of int16_t (RoundRow16), for kInt4 of int8_t (RoundRow8);
                           // or [rows, groups, 3, 32] of int8_t (CutIntoDigits)
  const float* scales;     // [rows, groups]
  const int32_t* offsets;  // likewise, for kInt4; or [rows, groups, 3]
  int64_t rows, groups;
};
// The rounding dot form of these rows with panels [panel, panel_end) of w, by a unit that the processor has: row m to
// y[m] + the panels' rows.
void IntegerDotPanels(IntegerUnit unit, const RoundedActivations& x, const WeightView& w, int64_t panel,
                      int64_t panel_end, float* const* y);
// That with kVnni, where this is compiled for a processor that may have it.
void VnniDotPanels(const RoundedActivations& x, const WeightView& w, int64_t panel, int64_t panel_end, float* const* y);

}  // namespace c3po::cpu

#endif  // C3PO_SERVER_COMPUTE_CPU_QUANTIZED_PRODUCTS_H_
