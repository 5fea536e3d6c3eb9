#ifndef C3PO_TESTS_GPU_INDEX_MARKS_H_
#define C3PO_TESTS_GPU_INDEX_MARKS_H_

#include "tests/gpu/marks_device.h"
#include "tests/gpu/marks_table.h"

namespace c3po {

// Rows of the index: scans of a small and a large collection, and the beam search on a graph, of which as much is
// built as hnswlib links in `graph_seconds`. Ends the process where something is wrong.
void MeasureIndex(const MarksDevice& device, bool tiny, double graph_seconds, MarksTable& table);

}  // namespace c3po

#endif  // C3PO_TESTS_GPU_INDEX_MARKS_H_
