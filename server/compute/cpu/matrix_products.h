#ifndef C3PO_SERVER_COMPUTE_CPU_MATRIX_PRODUCTS_H_
#define C3PO_SERVER_COMPUTE_CPU_MATRIX_PRODUCTS_H_

#include <algorithm>
#include <cstdint>

#include "absl/types/span.h"
#include "server/compute/cpu/panels.h"
#include "server/compute/cpu/quantized_panels.h"

namespace c3po::cpu {

// Products of activations (float32) with a weight matrix W [n, k] (float32 or bfloat16, row-major or in panels,
// panels.h; or quantized, quantized_panels.h), which is read where it lies: a product of few rows costs one pass over
// W. Both forms accumulate in float32.
//   dot form    y[m, n] = sum_k x[m, k] W[n, k]       forward of a projection; of weights in pairs, x is rounded to
//                                                     bfloat16 where the processor has a unit for it; of quantized
//                                                     weights, to integers where the view says so
//   outer form  y[m, k] = sum_n a[m, n] W[n, k]       its backward
// The order of the sum in an element depends on n, k and the layout alone: a row's result is bitwise the same whatever
// other rows are in the product, and on any number of threads of one machine. All functions are thread-safe, run on
// ThreadPool::Shared(), and check nothing: rows, strides and sizes are the caller's word. Input and output must not
// overlap.

struct RowsView {
  const float* data = nullptr;
  int64_t stride = 0;
  int64_t rows = 0;
  const int64_t* index = nullptr;  // Row i of the view is row index[i] of data; null: row i. No index twice.
};

// Is told the activations that a matrix is multiplied with, in the dot form (activation_squares.h).
class ProductObserver {
 public:
  // x [m, width], of a product with part `unit` of the matrix; kAllUnits: with the whole.
  virtual void Observe(const RowsView& x, int64_t width, int64_t unit) = 0;

 protected:
  ~ProductObserver() = default;
};
constexpr int64_t kAllUnits = -1;

struct WeightView {
  const void* data = nullptr;
  bool bfloat16 = false;
  int64_t rows = 0;                           // n
  int64_t columns = 0;                        // k
  WeightLayout layout = WeightLayout::kRows;  // In panels n is a multiple of kPanelRows.
  int64_t stride = 0;                         // The columns of the whole, of which these are some; 0: these are all.
  // Of a quantized matrix alone: where panels and groups are cut (quantized_panels.h), and whether the dot form rounds
  // activations to integers (quantized_products.h); else it is the product with the widened weights.
  QuantizedCut cut = {};
  bool rounds_activations = false;
  // Told of what MultiplyTransposed multiplies the matrix with, before it does; null: nobody. Rows() and Columns() of a
  // matrix that is not quantized have none: who cuts it says which part it is.
  ProductObserver* observer = nullptr;
  int64_t observed_unit = kAllUnits;

  bool in_panels() const { return layout != WeightLayout::kRows; }
  bool quantized() const { return layout == WeightLayout::kInt8 || layout == WeightLayout::kInt4; }
  // Rows may be cut at multiples of it, and at the end.
  int64_t row_step() const { return !in_panels() ? 1 : quantized() && cut.row_unit < rows ? cut.row_unit : kPanelRows; }

  int64_t row_stride() const { return stride > 0 ? stride : columns; }
  // From and to a multiple of row_step(), or to the end.
  WeightView Rows(int64_t begin, int64_t end) const {
    if (quantized()) return QuantizedRows(begin, end);
    return {At(begin * row_stride()), bfloat16, end - begin, columns, layout, row_stride()};
  }
  // Of pairs: from and to an even one. Of quantized ones: from a group's first one.
  WeightView Columns(int64_t begin, int64_t end) const {
    if (quantized()) return QuantizedColumns(begin, end);
    return {At(begin * (in_panels() ? kPanelRows : 1)), bfloat16, rows, end - begin, layout, row_stride()};
  }
  const void* At(int64_t weights) const { return static_cast<const char*>(data) + weights * (bfloat16 ? 2 : 4); }

 private:
  WeightView QuantizedRows(int64_t begin, int64_t end) const {
    WeightView view = *this;
    view.data = static_cast<const char*>(data) + cut.PanelOf(begin) * PanelBytes(layout, cut.panel_groups);
    view.rows = end - begin;
    view.cut.row_unit = std::min(cut.row_unit, view.rows);
    return view;
  }
  WeightView QuantizedColumns(int64_t begin, int64_t end) const {
    WeightView view = *this;
    view.columns = end - begin;
    view.cut.first_group += cut.GroupOf(begin);
    view.cut.column_unit = std::min(cut.column_unit, view.columns);
    return view;
  }
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
  // Where w is in cache, and what is read next lies so many bytes behind each of its weights: memory is asked for it
  // meanwhile. 0: w may come from memory itself.
  int64_t next_bytes = 0;
};
// Independent products, run as one job: y is overwritten, and no row of it belongs to two of them. Much faster than
// MultiplyAdd where few rows meet many weights, since each thread reads whole matrices.
void Multiply(absl::Span<const OuterProduct> products);
// Products with the same number of columns k, added to y in their order; they may add to the same rows.
void MultiplyAdd(absl::Span<const OuterProduct> products);

// One product on the calling thread alone, for work that is divided already; the same results. `job`: 0, or a number
// that some calls have of NewProductJob(): those of one thread whose products have the same address have the same x
// then, which is rounded once.
void MultiplyTransposedHere(const DotProduct& product, int64_t job = 0);
int64_t NewProductJob();
void MultiplyAddHere(const OuterProduct& product);

}  // namespace c3po::cpu

#endif  // C3PO_SERVER_COMPUTE_CPU_MATRIX_PRODUCTS_H_
