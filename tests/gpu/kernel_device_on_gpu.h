#ifndef C3PO_TESTS_GPU_KERNEL_DEVICE_ON_GPU_H_
#define C3PO_TESTS_GPU_KERNEL_DEVICE_ON_GPU_H_

#include <stdexcept>
#include <string>

#include "index/base/cuda/library.h"
#include "index/base/cuda/runtime.h"

namespace c3po::host_cuda {

// What kernels of the tests are launched on. Throws std::runtime_error where there is no GPU.
cuda::Stream TestedStream();

// The library's table of that name. Throws std::runtime_error where it does not load.
template <class Table>
const Table& TestedKernels(const char* name) {
  static const Table* const kernels = [name] {
    const auto& library = cuda::OpenLibrary();
    if (!library.ok()) throw std::runtime_error(std::string(library.status().message()));
    const auto table = library->template Kernels<Table>(name);
    if (!table.ok()) throw std::runtime_error(std::string(table.status().message()));
    return *table;
  }();
  return *kernels;
}

}  // namespace c3po::host_cuda

#endif  // C3PO_TESTS_GPU_KERNEL_DEVICE_ON_GPU_H_
