#ifndef C3PO_SERVER_COMPUTE_CPU_PANEL_PRODUCTS_H_
#define C3PO_SERVER_COMPUTE_CPU_PANEL_PRODUCTS_H_

#include <cstdint>

#include "server/compute/cpu/matrix_products.h"

namespace c3po::cpu {

// The blocks of MultiplyTransposed and MultiplyAdd where the weights lie in panels (panels.h), on the calling thread.
// What matrix_products.h promises of them holds: the order of an element's sum depends on n and k alone.

// y[row..row_end, begin..end) = x W^T; begin a multiple of 16, end likewise.
void PanelDotBlock(const DotProduct& product, int64_t row, int64_t row_end, int64_t begin, int64_t end);
// y[:, begin..end) += a W, for all rows.
void PanelOuterColumns(const OuterProduct& product, int64_t begin, int64_t end);

}  // namespace c3po::cpu

#endif  // C3PO_SERVER_COMPUTE_CPU_PANEL_PRODUCTS_H_
