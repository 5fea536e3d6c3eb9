#ifndef C3PO_SERVER_COMPUTE_DEVICE_H_
#define C3PO_SERVER_COMPUTE_DEVICE_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/compute/backend.h"
#include "server/compute/cpu/panels.h"
#include "server/compute/device_queue.h"
#include "server/compute/matrix.h"
#include "server/compute/model_weights.h"
#include "server/model/config/model_config.h"
#include "server/types/device_name.h"
#include "server/weights/checkpoint.h"

namespace c3po {

namespace cpu {
class ActivationSquares;
}  // namespace cpu

// A queue of that device for who has no model there; beside a model, Backend::NewQueue. Errors are those of both, and
// of aten::OpenDevice.
absl::StatusOr<std::unique_ptr<DeviceQueue>> OpenQueue(const std::string& device);

// Which backend computes, and how it keeps weights, keys and values.
struct WeightPlacement {
  std::string device = std::string(kCpuDevice);  // one of kDeviceNames
  ElementType dtype = ElementType::kFloat32;
  cpu::WeightLayout layout = cpu::WeightLayout::kPanels;  // on the CPU: see cpu::PackWeights
  WeightFormat format = WeightFormat::kElements;          // likewise
  bool as_stored = false;                                 // likewise: packed levels stay, nothing else is quantized
  bool rounds_activations = false;                        // of quantized weights: see cpu::CpuBackend
  ElementType kv = ElementType::kFloat32;  // of the cache's keys and values and of references'; on CUDA that of dtype
  // On the CPU: what columns weigh when their matrix is quantized; null: what --weights gives.
  std::shared_ptr<const cpu::ActivationSquares> columns = nullptr;
  // On the CPU: is told what activations meet the matrices in steps of running sequences; null: nobody.
  std::shared_ptr<cpu::ActivationSquares> observer = nullptr;

  // Of products, as ModelShape tells it: "float32" or "bfloat16"; on the CPU "int16" where weights of 8 bits meet
  // rounded activations, "int8" where those of 4 bits do.
  std::string arithmetic() const;
  // How the large matrices are held, as ModelShape tells it: "int8", "int4", else the name of `dtype`.
  std::string weights() const;
};

// What is asked of the placement of a model's weights: the settings --device, --dtype, --arithmetic,
// --weights and --kv-cache-dtype.
struct PlacementOptions {
  std::string device = std::string(kCpuDevice);
  std::string dtype = "auto";
  std::string arithmetic = "auto";
  std::string weights = "auto";
  std::string kv_cache_dtype = "auto";
};

// The type of keys and values, the cache's and references', beside weights that are placed so: "float32"; "bfloat16";
// "auto": float32 where all weights are, else bfloat16. InvalidArgument: another name, or one that the device does not
// keep: CUDA's kernels read what auto says, and nothing else.
absl::StatusOr<ElementType> ChooseKvType(const std::string& name, const WeightPlacement& weights);

// How the weights of `checkpoint` are kept, what they are multiplied in, and how keys and values are kept.
//   device      one of kDeviceNames, which is opened
//   dtype       of the weights: "float32", "bfloat16", or "auto": bfloat16 on CUDA and where they are stored so or in 8
//               bits or fewer, else float32. Of a quantized folder: where what is not quantized is stored so. In
//               arithmetic of float32 widening is exact: bfloat16 halves what is read, and changes nothing.
//   arithmetic  of products on the CPU: "float32"; "bfloat16", which rounds activations to bfloat16, and needs weights
//               of it and a processor that multiplies them (server/compute/cpu/bfloat16_products.h); "auto": bfloat16
//               where it can be. Another device computes in the weights' dtype.
//   weights     how the large matrices are held (cpu::PackWeights): "int8" or "int4", quantized at load; or "float32"
//   or
//               "bfloat16", another word for that dtype, in which packed levels are widened; "auto": packed levels as
//               they are stored, all else as `dtype` says. Where they are quantized, `dtype` is that of all else. On
//               the CPU `arithmetic` "auto" then rounds the activations of running sequences to integers
//               (cpu::CpuBackend), and "float32" does not; on CUDA rows are rounded to `dtype`. "bfloat16" is refused.
//   kv_cache_dtype  see ChooseKvType
// InvalidArgument: another name, bfloat16 with weights of float32 or quantized ones, or asked of another device, "int8"
// of weights that are packed in 4 bits or the other way, a dtype that contradicts `weights`, an embedding that is not
// stored as weights are, and as ChooseKvType; NotFound: it is missing; FailedPrecondition: the device is missing, or
// the processor cannot.
absl::StatusOr<WeightPlacement> ChoosePlacement(const Checkpoint& checkpoint, const PlacementOptions& options);

// What computes on that device, with weights that it packed for itself. ResourceExhausted: they find no room.
// InvalidArgument: they are not those of `config`. FailedPrecondition: the device is missing.
absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(const ModelConfig& config, const ModelWeights& weights,
                                                     const WeightPlacement& placement,
                                                     const LoadProgress& progress = nullptr);

// Threads that the model computes on, for the whole process, set before the first model is loaded: those of
// server/compute/cpu; 0: OMP_NUM_THREADS, else as many as processors may be used (index/base/cgroup_limits.h).
// libtorch's own pool is left one thread, whose barriers would otherwise spin beside ours. `pinned`: see ThreadPool.
// The engine and the queues of device_queue.h share these threads: no more than so many compute, and two where it is 1.
void SetComputeThreads(int threads, bool pinned = false);
int ComputeThreads();

}  // namespace c3po

#endif  // C3PO_SERVER_COMPUTE_DEVICE_H_
