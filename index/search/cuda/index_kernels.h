#ifndef C3PO_INDEX_SEARCH_CUDA_INDEX_KERNELS_H_
#define C3PO_INDEX_SEARCH_CUDA_INDEX_KERNELS_H_

#include "index/base/cuda/runtime.h"
#include "index/search/cuda/beam_search.h"
#include "index/search/cuda/narrow.h"
#include "index/search/cuda/scan.h"
#include "index/search/cuda/scatter.h"

namespace c3po::cuda {

// The kernels of the index as whoever plans work for a device sees them: libc3po_cuda.so exports them, tests compile
// them for the host.
struct IndexKernels {
  Error (*scan)(const ScanArgs& args, Stream stream);
  Error (*half_scan)(const HalfScanArgs& args, Stream stream);
  Error (*beam_search)(const BeamArgs& args, Stream stream);
  Error (*scatter)(const ScatterArgs& args, Stream stream);
  Error (*narrow)(const NarrowArgs& args, Stream stream);
};

// What libc3po_cuda.so exports as `c3po_index_kernels`. Null: of another version than kCudaLibraryVersion.
using IndexKernelsFunction = const IndexKernels* (*)(int version);

}  // namespace c3po::cuda

#endif  // C3PO_INDEX_SEARCH_CUDA_INDEX_KERNELS_H_
