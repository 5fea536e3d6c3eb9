#ifndef C3PO_INDEX_SEARCH_CUDA_SCATTER_H_
#define C3PO_INDEX_SEARCH_CUDA_SCATTER_H_

#include <cstdint>

#include "index/base/cuda/runtime.h"

// Writes runs of words to where they belong: vectors, labels, bits and links of what changed in an index, which came to
// the device as one block.
namespace c3po::cuda {

struct WordRun {
  uint32_t* to;    // in device memory
  uint32_t from;   // in ScatterArgs::words
  uint32_t count;  // of words
};

struct ScatterArgs {
  const WordRun* runs = nullptr;  // [run_count], of which no two write one word
  const uint32_t* words = nullptr;
  int run_count = 0;  // >= 1
};

Error LaunchScatter(const ScatterArgs& args, Stream stream);

}  // namespace c3po::cuda

#endif  // C3PO_INDEX_SEARCH_CUDA_SCATTER_H_
