#ifndef C3PO_SERVER_COMPUTE_CPU_DIGIT_PRODUCTS_H_
#define C3PO_SERVER_COMPUTE_CPU_DIGIT_PRODUCTS_H_

#include <cstdint>

#include "server/compute/cpu/quantized_products.h"

namespace c3po::cpu {

// x W^T with quantized weights and activations that keep float32's precision, by AVX-512 VNNI: what descent multiplies
// with. An activation becomes an integer of 24 bits, cut into three signed digits,
//   x[k] ~ scale q[k],    scale = max |x[k]| of the group / 8355000,    q = round(x / scale), ties to even,
//   q = 65536 d0 + 256 d1 + d2,    d in [-128, 127]
// so an entry is off by two units of scale at most, 2.4e-7 of the group's largest. The products of each digit with a
// group's levels are added up exactly, so that no weight is ever widened to float32.
//
// All functions need IntegerUnit::kVnni, run on the calling thread, are thread-safe and check nothing.

constexpr int kDigits = 3;
constexpr int64_t kDigitGroupBytes = kDigits * kGroupColumns;  // of a row's group

// A row x [columns], cut into groups as the columns of `cut` are. digits [groups, 3, 32], padded with 0: d0, d1, d2;
// those of kInt8 in the order of a word's bytes (quantized_panels.h). scales [groups]. offsets [groups, 3]: -8 (kInt4)
// or -128 (kInt8) times the sum of a digit, which takes back what is added to levels to have no sign. A group whose
// entries are all below 2^-100 is 0; of one with an entry that is not finite the scale is none.
void CutIntoDigits(WeightLayout layout, const float* x, const QuantizedCut& cut, int64_t columns, int8_t* digits,
                   float* scales, int32_t* offsets);

// The dot form of such rows with panels [panel, panel_end) of w: row m to y[m] + the panels' rows. With s the weights'
// scale of a group,
//   y += s (scale (65536 sum0 + (256 sum1 + sum2))),    ascending by group, in float32, sums exact,
// so that a row's result is bitwise the same in any batch.
void DigitDotPanels(const RoundedActivations& x, const WeightView& w, int64_t panel, int64_t panel_end,
                    float* const* y);

}  // namespace c3po::cpu

#endif  // C3PO_SERVER_COMPUTE_CPU_DIGIT_PRODUCTS_H_
