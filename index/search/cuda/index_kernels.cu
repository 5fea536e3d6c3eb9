#include "index/search/cuda/index_kernels.h"

namespace c3po::cuda {
namespace {

constexpr IndexKernels kKernels = {&LaunchScan, &LaunchHalfScan, &LaunchBeamSearch, &LaunchScatter, &LaunchNarrow};

}  // namespace
}  // namespace c3po::cuda

extern "C" __attribute__((visibility("default"))) const c3po::cuda::IndexKernels* c3po_index_kernels(int version) {
  return version == c3po::cuda::kCudaLibraryVersion ? &c3po::cuda::kKernels : nullptr;
}
