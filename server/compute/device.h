#ifndef C3PO_SERVER_COMPUTE_DEVICE_H_
#define C3PO_SERVER_COMPUTE_DEVICE_H_

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/compute/backend.h"
#include "server/compute/cpu/panels.h"
#include "server/compute/device_queue.h"
#include "server/compute/moe_weights.h"
#include "server/compute/rope_table.h"
#include "server/model/config/model_config.h"

namespace c3po {

// `name`: one of kDeviceNames (server/types/device_name.h). The CUDA half of libtorch is opened here, on first use, so
// that a CPU server neither loads nor needs it. FailedPrecondition: cuda asked for where its libraries or a GPU are
// missing; the message says which. InvalidArgument: another name.
absl::StatusOr<at::Device> OpenDevice(const std::string& name);

// A queue of that device for who has no model there; beside a model, Backend::NewQueue. Errors are those of both.
absl::StatusOr<std::unique_ptr<DeviceQueue>> OpenQueue(const std::string& device);

// How the weights of `checkpoint` are loaded, and what they are multiplied in.
//   device      see OpenDevice
//   dtype       of the weights: "float32", "bfloat16", or "auto": bfloat16 on CUDA and where they are stored so, else
//               float32. In arithmetic of float32 widening is exact: bfloat16 halves what is read, and changes nothing.
//   arithmetic  of products on the CPU: "float32"; "bfloat16", which rounds activations to bfloat16, and needs weights
//               of it and a processor that multiplies them (server/compute/cpu/bfloat16_products.h); "auto": bfloat16
//               where it can be. Another device computes in the weights' dtype.
// InvalidArgument: another name, bfloat16 with weights of float32, or asked of another device; FailedPrecondition: the
// device is missing, or the processor cannot.
absl::StatusOr<WeightPlacement> ChoosePlacement(const Checkpoint& checkpoint, const std::string& device,
                                                const std::string& dtype, const std::string& arithmetic);
// Weights of `dtype` for products in float32 on the CPU, in the weights' dtype elsewhere.
WeightPlacement PlacementOn(at::Device device, at::ScalarType dtype);

// Puts what activations are multiplied by into the layout that the CPU's kernels read fastest (ToPanels), where it
// lies: projections, routers, experts and the LM head, and the embedding where it is the LM head. Elsewhere, and what
// is in it already: nothing. `layout`: of all but routers, whose choices a rounded activation would change, and of
// experts of an odd number of neurons; these lie in kPanels.
void PackWeights(MoeWeights& weights, cpu::WeightLayout layout);

// What computes where the weights lie: our kernels on the CPU, libtorch elsewhere. The weights are shared.
std::unique_ptr<Backend> MakeBackend(const ModelConfig& config, const MoeWeights& weights, const RopeTable& rope);

// Threads that the model computes on, for the whole process, set before the first model is loaded: those of
// server/compute/cpu; 0: OMP_NUM_THREADS, else as many as processors may be used (index/base/cgroup_limits.h).
// libtorch's own pool is left one thread, whose barriers would otherwise spin beside ours. `pinned`: see ThreadPool.
// The engine and the queues of device_queue.h share these threads: no more than so many compute, and two where it is 1.
void SetComputeThreads(int threads, bool pinned = false);
int ComputeThreads();

}  // namespace c3po

#endif  // C3PO_SERVER_COMPUTE_DEVICE_H_
