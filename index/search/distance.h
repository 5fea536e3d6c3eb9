#ifndef C3PO_INDEX_SEARCH_DISTANCE_H_
#define C3PO_INDEX_SEARCH_DISTANCE_H_

#include <cstddef>

namespace c3po {

// sum_i (a_i - b_i)^2 over `size` floats, in float32 with 32 partial sums. Differences, not 2 - 2<a,b>, which loses
// every digit for near neighbors. Every index reports the square root of this one, so that equal vectors have equal
// distances whichever index found them, and on every x86 processor. Pure and thread-safe.
float SquaredDistance(const float* a, const float* b, size_t size);

}  // namespace c3po

#endif  // C3PO_INDEX_SEARCH_DISTANCE_H_
