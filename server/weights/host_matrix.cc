#include "server/weights/host_matrix.h"

namespace c3po {

HostMatrix HostMatrix::Of(const TensorView& view) {
  const int64_t columns = view.shape.size() < 2 ? 1 : view.shape.back();
  return {view.dtype, columns == 0 ? 0 : view.elements() / columns, columns, view.bytes, /*mapped=*/true};
}

HostMatrix HostMatrix::Rows(int64_t begin, int64_t count) const {
  return {type, count, columns,
          bytes.subspan(static_cast<size_t>(begin * row_bytes()), static_cast<size_t>(count * row_bytes())), mapped};
}

void DropPages(const HostMatrix& matrix) {
  if (matrix.mapped) DropPages(TensorView{matrix.type, {matrix.rows, matrix.columns}, matrix.bytes});
}

}  // namespace c3po
