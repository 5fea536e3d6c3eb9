#ifndef C3PO_SERVER_COMPUTE_CPU_CPU_QUEUE_H_
#define C3PO_SERVER_COMPUTE_CPU_CPU_QUEUE_H_

#include "server/compute/device_queue.h"

namespace c3po::cpu {

// On ThreadPool::Shared(), as its guest. Products are this folder's; libtorch's operators run on the calling thread
// alone once SetComputeThreads has been called (server/compute/device.h).
class CpuQueue final : public DeviceQueue {
 public:
  void Run(absl::FunctionRef<void()> work) override;
  at::Tensor FromHost(const at::Tensor& host) override;  // The tensor itself.
  at::Tensor ToHost(const at::Tensor& x) override;
  at::Tensor Linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) override;
};

}  // namespace c3po::cpu

#endif  // C3PO_SERVER_COMPUTE_CPU_CPU_QUEUE_H_
