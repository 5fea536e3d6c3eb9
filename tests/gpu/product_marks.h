#ifndef C3PO_TESTS_GPU_PRODUCT_MARKS_H_
#define C3PO_TESTS_GPU_PRODUCT_MARKS_H_

#include "tests/gpu/marks_device.h"
#include "tests/gpu/marks_table.h"

namespace c3po {

// Rows of single products of few rows, by the bits of a weight: the LM head's and that of the experts' gate and up
// rows, of OLMoE-1B-7B's shape or of a tiny one. Their floor is the bytes of the weights that are read, once each. Ends
// the process where something is wrong. On a GPU it takes about two seconds and 2 GB of its memory.
void MeasureProducts(const MarksDevice& device, bool tiny, MarksTable& table);

}  // namespace c3po

#endif  // C3PO_TESTS_GPU_PRODUCT_MARKS_H_
