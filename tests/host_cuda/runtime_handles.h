#ifndef C3PO_TESTS_HOST_CUDA_RUNTIME_HANDLES_H_
#define C3PO_TESTS_HOST_CUDA_RUNTIME_HANDLES_H_

#include <map>
#include <memory>
#include <string>
#include <thread>

#include "index/base/cuda/runtime.h"
#include "tests/host_cuda/runtime.h"
#include "tests/host_cuda/stream.h"
#include "tests/host_cuda/work_queue.h"

// What is behind the handles of the host runtime; for runtime.cc and runtime_work.cc.
namespace c3po::cuda {

struct EventHandle {};
struct GraphHandle {};

}  // namespace c3po::cuda

namespace c3po::host_cuda {

inline constexpr cuda::Error kNotWhileRecording = "operation not permitted when stream is capturing";

// What a stream gets between BeginRecording and EndRecording.
struct Recording {
  std::thread::id thread;
  Operation operation;
  RuntimeCounts counts;
  std::map<std::string, int64_t> kernels;
  cuda::Error invalid = nullptr;  // EndRecording fails.
};

struct HostStream final : cuda::StreamHandle {
  HostStream(HostRuntime& its_runtime, WorkQueue& work) : runtime(its_runtime), queue(work) {}
  cuda::Error Enqueue(KernelLaunch launch) override;

  HostRuntime& runtime;
  WorkQueue& queue;
  bool deleted = false;
  std::unique_ptr<Recording> recording;  // null: none is under way
};

struct HostEvent final : cuda::EventHandle {
  bool timed = false;
  bool deleted = false;
  std::shared_ptr<EventRecord> record;      // the latest; null: none
  const HostStream* recorded_in = nullptr;  // the stream in whose recording it was recorded last
};

struct HostGraph final : cuda::GraphHandle {
  bool deleted = false;
  Operation operation;
  RuntimeCounts counts;
  std::map<std::string, int64_t> kernels;
};

}  // namespace c3po::host_cuda

#endif  // C3PO_TESTS_HOST_CUDA_RUNTIME_HANDLES_H_
