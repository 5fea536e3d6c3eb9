#ifndef C3PO_SERVER_COMPUTE_CPU_MATRIX_PRODUCTS_H_
#define C3PO_SERVER_COMPUTE_CPU_MATRIX_PRODUCTS_H_

#include <cstdint>

#include "absl/types/span.h"
#include "server/compute/cpu/panels.h"

namespace c3po::cpu {

// Products of activations (float32) with a weight matrix W [n, k] (float32 or bfloat16), row-major or in panels
// (panels.h), which is read where it lies: a product of few rows costs one pass over W. Both forms accumulate in
// float32.
//   dot form    y[m, n] = sum_k x[m, k] W[n, k]       forward of a projection; of weights in pairs, x is rounded to
//                                                     bfloat16 where the processor has a unit for it
//   outer form  y[m, k] = sum_n a[m, n] W[n, k]       its backward
// The order of the sum in an element depends on n, k and the layout alone: a row's result is bitwise the same whatever
// other rows are in the product, and on any number of threads of one machine. All functions are thread-safe, run on
// ThreadPool::Shared(), and check nothing: rows, strides and sizes are the caller's word. Input and output must not
// overlap.

struct WeightView {
  const void* data = nullptr;
  bool bfloat16 = false;
  int64_t rows = 0;                           // n
  int64_t columns = 0;                        // k
  WeightLayout layout = WeightLayout::kRows;  // In panels n is a multiple of kPanelRows.
  int64_t stride = 0;                         // The columns of the whole, of which these are some; 0: these are all.

  bool in_panels() const { return layout != WeightLayout::kRows; }

  int64_t row_stride() const { return stride > 0 ? stride : columns; }
  // Of panels: from and to a multiple of kPanelRows.
  WeightView Rows(int64_t begin, int64_t end) const {
    return {At(begin * row_stride()), bfloat16, end - begin, columns, layout, row_stride()};
  }
  // Of pairs: from and to an even one.
  WeightView Columns(int64_t begin, int64_t end) const {
    return {At(begin * (in_panels() ? kPanelRows : 1)), bfloat16, rows, end - begin, layout, row_stride()};
  }
  const void* At(int64_t weights) const { return static_cast<const char*>(data) + weights * (bfloat16 ? 2 : 4); }
};

struct RowsView {
  const float* data = nullptr;
  int64_t stride = 0;
  int64_t rows = 0;
  const int64_t* index = nullptr;  // Row i of the view is row index[i] of data; null: row i. No index twice.
};

struct MutableRowsView {
  float* data = nullptr;
  int64_t stride = 0;
  const int64_t* index = nullptr;
};

struct DotProduct {
  RowsView x;         // [m, k]
  WeightView w;       // [n, k]
  MutableRowsView y;  // [m, n], overwritten
};
// Independent products, run as one job.
void MultiplyTransposed(absl::Span<const DotProduct> products);

struct OuterProduct {
  RowsView a;         // [m, n]
  WeightView w;       // [n, k]
  MutableRowsView y;  // [m, k]
};
// Independent products, run as one job: y is overwritten, and no row of it belongs to two of them. Much faster than
// MultiplyAdd where few rows meet many weights, since each thread reads whole matrices.
void Multiply(absl::Span<const OuterProduct> products);
// Products with the same number of columns k, added to y in their order; they may add to the same rows.
void MultiplyAdd(absl::Span<const OuterProduct> products);

// One product on the calling thread alone, for work that is divided already; the same results.
void MultiplyTransposedHere(const DotProduct& product);
void MultiplyAddHere(const OuterProduct& product);

}  // namespace c3po::cpu

#endif  // C3PO_SERVER_COMPUTE_CPU_MATRIX_PRODUCTS_H_
