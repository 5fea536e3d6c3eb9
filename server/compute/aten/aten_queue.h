#ifndef C3PO_SERVER_COMPUTE_ATEN_ATEN_QUEUE_H_
#define C3PO_SERVER_COMPUTE_ATEN_ATEN_QUEUE_H_

#include <c10/core/Stream.h>

#include <memory>

#include "absl/status/statusor.h"
#include "server/compute/device_queue.h"

namespace c3po::aten {

// By libtorch alone: on a CUDA device a stream of its pool of 32, which are handed out in turn and never taken back; so
// 32 queues of a process differ. On the CPU, where tests compare it with cpu::CpuQueue, the calling thread.
class AtenQueue final : public DeviceQueue {
 public:
  // FailedPrecondition: the device gives no stream or no memory; the message is libtorch's.
  static absl::StatusOr<std::unique_ptr<AtenQueue>> Create(at::Device device);

  // Of work on this queue, whichever thread gives it.
  c10::Stream stream() const { return stream_; }

  void Run(absl::FunctionRef<void()> work) override;
  at::Tensor FromHost(const at::Tensor& host) override;
  at::Tensor ToHost(const at::Tensor& x) override;
  at::Tensor Linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) override;

 private:
  explicit AtenQueue(c10::Stream stream) : stream_(stream) {}

  const c10::Stream stream_;
};

}  // namespace c3po::aten

#endif  // C3PO_SERVER_COMPUTE_ATEN_ATEN_QUEUE_H_
