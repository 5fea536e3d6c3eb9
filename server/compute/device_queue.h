#ifndef C3PO_SERVER_COMPUTE_DEVICE_QUEUE_H_
#define C3PO_SERVER_COMPUTE_DEVICE_QUEUE_H_

#include <ATen/core/Tensor.h>

#include "absl/functional/function_ref.h"

namespace c3po {

// A queue of work on the engine's device, for a computation that is not the engine's: the sentence encoder has one. It
// runs beside the engine's queue and neither waits for the other; they share no memory. Its owner computes by
// libtorch's operators on tensors that FromHost gave it, inside Run, and by Linear; where they lie is the queue's
// affair.
//   on a CUDA device   a stream of libtorch's pool, never the default stream, on which the engine computes. Work of all
//                      threads is in one order, that of its calls.
//   on the CPU         the calling thread, and compute threads that the engine leaves idle. It takes the place of a
//                      compute thread (ThreadPool::Guest), so that no more threads compute than --threads. Waits for
//                      other callers of such queues where that many are inside, in the order of their calls.
// Thread-safe. A row of a product is bitwise the same on the CPU whatever else runs.
class DeviceQueue {
 public:
  virtual ~DeviceQueue() = default;

  // Calls `work` on this thread, in inference mode, with this queue as the one that libtorch's operators go to there;
  // the thread's former state is back afterwards, also where `work` throws, which passes through. Not within `work`.
  virtual void Run(absl::FunctionRef<void()> work) = 0;

  // Within `work` only. They throw, as libtorch does: c10::Error, std::bad_alloc.
  // The same elements on the device, and on the host, contiguous. They wait for this queue's work before them.
  virtual at::Tensor FromHost(const at::Tensor& host) = 0;
  virtual at::Tensor ToHost(const at::Tensor& x) = 0;
  // y[..., o] = sum_i x[..., i] weight[o, i] + bias[o], in float32; weight and bias are contiguous. A weight may be
  // bfloat16: it is widened, exactly.
  virtual at::Tensor Linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) = 0;
};

}  // namespace c3po

#endif  // C3PO_SERVER_COMPUTE_DEVICE_QUEUE_H_
