#ifndef C3PO_TESTS_GPU_MARKS_DEVICE_H_
#define C3PO_TESTS_GPU_MARKS_DEVICE_H_

#include <string>

#include "index/base/cuda/runtime.h"

namespace c3po {

// Their headers cannot be included together.
namespace cuda {
struct ModelKernels;
struct IndexKernels;
}  // namespace cuda

// What the table of marks is measured on.
struct MarksDevice {
  cuda::Runtime* runtime = nullptr;
  const cuda::ModelKernels* model_kernels = nullptr;
  const cuda::IndexKernels* index_kernels = nullptr;
  bool has_times = false;  // A GPU's; those of the execution model say nothing.
};

// Null runtime: there is no device here, and `why` says why. A program has one definition: marks_on_gpu.cc, or
// marks_on_host.cc of the execution model. What it gives lives as long as the process.
MarksDevice OpenMarksDevice(std::string* why);

}  // namespace c3po

#endif  // C3PO_TESTS_GPU_MARKS_DEVICE_H_
