#ifndef C3PO_SERVER_COMPUTE_CPU_ROW_OPERATIONS_H_
#define C3PO_SERVER_COMPUTE_CPU_ROW_OPERATIONS_H_

#include <cstdint>

namespace c3po::cpu {

// What a decoder layer does to rows besides products, in float32, each in one pass over its operands. Rows are
// `stride` floats apart where a stride is given, else packed. A row's result does not depend on the other rows; all
// functions run on ThreadPool::Shared(), are thread-safe and check nothing.

// y = x / sqrt(mean(x^2) + eps) * weight. y [rows, size] packed.
void RmsNormRows(const float* x, int64_t stride, const float* weight, double eps, int64_t rows, int64_t size, float* y);
// dx = add + dJ/dx, from dJ/dy: with n = x * rstd and g = dy * weight, dJ/dx = rstd * (g - n * mean(g * n)). `add` may
// be null.
void RmsNormBackwardRows(const float* dy, const float* x, int64_t stride, const float* weight, const float* add,
                         double eps, int64_t rows, int64_t size, float* dx);

// x [rows, heads, 2 * half], rows `stride` apart: halves (a, b) of each head become (a cos - b sin, b cos + a sin) with
// cos, sin [rows, half], or with -sin if `inverse`. y packed.
void RotateRows(const float* x, int64_t stride, const float* cos, const float* sin, bool inverse, int64_t rows,
                int64_t heads, int64_t half, float* y);

// out = scale * silu(gate) * up of each of `blocks` blocks: gate_up [blocks, 2, size] -> out [blocks, size]; scale
// [blocks].
void SwigluBlocks(const float* gate_up, const float* scale, int64_t blocks, int64_t size, float* out);
// Its backward from t = dJ/dout: dscale = <t, silu(gate) * up> per block; dgate_up [blocks, 2, size].
void SwigluBackwardBlocks(const float* t, const float* gate_up, const float* scale, int64_t blocks, int64_t size,
                          float* dscale, float* dgate_up);

// x[i] = exp(factor * x[i] - max) / sum over the first `length` entries; the rest up to `width` becomes 0.
void SoftmaxInPlace(float* x, int64_t length, int64_t width, float factor);
// sum of exp(x - top) over `size` entries, top the largest of them; and x[i] = exp(x[i] - shift) * factor.
double SumOfExp(const float* x, int64_t size, float* top);
void ScaledExpInPlace(float* x, int64_t size, float shift, float factor);

// y[r] = sum over j of x[index[r * count + j]], in that order: x's rows and y's are packed, of `size`; count at
// least 1.
void SumRows(const float* x, const int64_t* index, int64_t rows, int64_t count, int64_t size, float* y);

// <x, y>, and y += a x; bfloat16 is widened first, which is exact: the bits are those of the widened numbers.
float Dot(const float* x, const float* y, int64_t size);
float Dot(const float* x, const uint16_t* y, int64_t size);
void AddScaled(float a, const float* x, int64_t size, float* y);
void AddScaled(float a, const uint16_t* x, int64_t size, float* y);

// y[i] = bfloat16 of x[i]: to the nearest, ties to even. What is not a number stays so; what is beyond bfloat16's
// largest number, 3.39e38, becomes an infinity.
void RoundToBfloat16(const float* x, int64_t size, uint16_t* y);

}  // namespace c3po::cpu

#endif  // C3PO_SERVER_COMPUTE_CPU_ROW_OPERATIONS_H_
