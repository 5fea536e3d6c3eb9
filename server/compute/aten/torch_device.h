#ifndef C3PO_SERVER_COMPUTE_ATEN_TORCH_DEVICE_H_
#define C3PO_SERVER_COMPUTE_ATEN_TORCH_DEVICE_H_

#include <ATen/core/Tensor.h>

#include <string>

#include "absl/status/statusor.h"

namespace c3po::aten {

// `name`: one of kDeviceNames (server/types/device_name.h). libc3po_cuda.so (index/base/cuda/library.h) and the CUDA half
// of libtorch are opened here, on first use, so that a CPU server neither loads nor needs them. FailedPrecondition: cuda
// asked for where one of these, a driver or a GPU is missing; the message says which. InvalidArgument: another name.
absl::StatusOr<at::Device> OpenDevice(const std::string& name);

// Leaves libtorch's own pool one thread: its barriers would spin beside the threads of server/compute/cpu.
void UseOneThread();

}  // namespace c3po::aten

#endif  // C3PO_SERVER_COMPUTE_ATEN_TORCH_DEVICE_H_
