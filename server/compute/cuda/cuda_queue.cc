#include "server/compute/cuda/cuda_backend.h"
#include "server/compute/device_queue.h"

namespace c3po::cuda {

absl::StatusOr<std::unique_ptr<DeviceQueue>> CudaBackend::NewQueue() const {
  if (new_queue_ == nullptr)
    return absl::FailedPreconditionError("device cuda: no queue for other work than the model's");
  return new_queue_();
}

}  // namespace c3po::cuda
