#include "server/compute/aten/aten_queue.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <exception>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace c3po::aten {

absl::StatusOr<std::unique_ptr<AtenQueue>> AtenQueue::Create(at::Device device) {
  try {
    // Of the pool: such streams do not wait for the default stream, nor it for them. The CPU has its one.
    std::unique_ptr<AtenQueue> queue(new AtenQueue(c10::impl::VirtualGuardImpl(device.type()).getNewStream(device)));
    queue->Run([&] { queue->ToHost(queue->FromHost(at::zeros({1}))); });
    return queue;
  } catch (const std::exception& error) {
    const auto* own = dynamic_cast<const c10::Error*>(&error);
    return absl::FailedPreconditionError(
        absl::StrCat("device ", device.str(), " gives no queue: ", own ? own->what_without_backtrace() : error.what()));
  }
}

void AtenQueue::Run(absl::FunctionRef<void()> work) {
  const c10::StreamGuard current(stream_);  // The current stream is the thread's, not the process's.
  const c10::InferenceMode inference;
  work();
}

// From memory that is not pinned: the copy is done when the call returns.
at::Tensor AtenQueue::FromHost(const at::Tensor& host) { return host.to(stream_.device()); }

at::Tensor AtenQueue::ToHost(const at::Tensor& x) { return x.to(at::kCPU).contiguous(); }

at::Tensor AtenQueue::Linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  return at::linear(x, weight.to(at::kFloat), bias);
}

}  // namespace c3po::aten
