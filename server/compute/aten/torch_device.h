#ifndef C3PO_SERVER_COMPUTE_ATEN_TORCH_DEVICE_H_
#define C3PO_SERVER_COMPUTE_ATEN_TORCH_DEVICE_H_

#include <ATen/core/Tensor.h>

#include <string>

#include "absl/status/statusor.h"

namespace c3po::aten {

// `name`: one of kDeviceNames (server/types/device_name.h). The CUDA half of libtorch is opened here, on first use, so
// that a CPU server neither loads nor needs it. FailedPrecondition: cuda asked for where its libraries or a GPU are
// missing; the message says which. InvalidArgument: another name.
absl::StatusOr<at::Device> OpenDevice(const std::string& name);

// Leaves libtorch's own pool one thread: its barriers would spin beside the threads of server/compute/cpu.
void UseOneThread();

}  // namespace c3po::aten

#endif  // C3PO_SERVER_COMPUTE_ATEN_TORCH_DEVICE_H_
