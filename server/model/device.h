#ifndef C3PO_SERVER_MODEL_DEVICE_H_
#define C3PO_SERVER_MODEL_DEVICE_H_

#include <ATen/core/Tensor.h>

#include <string>

#include "absl/status/statusor.h"
#include "server/model/cpu/panels.h"

namespace c3po {

// "cpu" or "cuda". The CUDA half of libtorch is opened here, on first use, so that a CPU server neither loads nor needs
// it. FailedPrecondition: cuda asked for where its libraries or a GPU are missing; the message says which.
// InvalidArgument: another name.
absl::StatusOr<at::Device> OpenDevice(const std::string& name);

// Of the weights: "float32", "bfloat16", or "auto": bfloat16 on CUDA and where the weights are `stored` so, else
// float32. In arithmetic of float32 widening is exact: bfloat16 halves what is read, and changes nothing.
absl::StatusOr<at::ScalarType> ChooseDtype(const std::string& name, at::Device device, at::ScalarType stored);

// How weights lie for products in `arithmetic` on the CPU: "float32"; "bfloat16", which rounds activations to bfloat16
// and needs weights of it and a processor that multiplies them (server/model/cpu/bfloat16_products.h); "auto": bfloat16
// where it can be. Another device computes in the weights' dtype. InvalidArgument: another name, bfloat16 with weights
// of float32, or asked of another device; FailedPrecondition: the processor cannot.
absl::StatusOr<cpu::WeightLayout> ChooseLayout(const std::string& arithmetic, at::Device device, at::ScalarType dtype);

// Threads that the model computes on, for the whole process, set before the first model is loaded: those of
// server/model/cpu; 0: OMP_NUM_THREADS, else as many as processors may be used (index/base/cgroup_limits.h). libtorch's
// own pool is left one thread, whose barriers would otherwise spin beside ours. `pinned`: see ThreadPool.
void SetComputeThreads(int threads, bool pinned = false);
int ComputeThreads();

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_DEVICE_H_
