#ifndef C3PO_TESTS_HOST_CUDA_RUNTIME_H_
#define C3PO_TESTS_HOST_CUDA_RUNTIME_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "index/base/cuda/runtime.h"
#include "tests/host_cuda/device_memory.h"
#include "tests/host_cuda/kernel_run.h"
#include "tests/host_cuda/work_queue.h"

namespace c3po::host_cuda {

// What was asked of a runtime. Work of a graph counts once for each launch of it.
struct RuntimeCounts {
  int64_t kernels = 0;        // launched one by one
  int64_t graph_kernels = 0;  // launched by a graph
  int64_t graph_launches = 0;
  int64_t recordings = 0;
  int64_t copies_to_device = 0, copies_to_host = 0, copies_on_device = 0, fills = 0;
  int64_t bytes_to_device = 0, bytes_to_host = 0, bytes_on_device = 0;
  int64_t pageable_copies = 0;  // from or to host memory that AllocatePinned did not give: on a GPU they may wait
  int64_t waits = 0;            // Synchronize
  int64_t device_waits = 0;     // Free: waits for all streams
  int64_t allocations = 0;      // of either kind of memory
  int64_t events = 0;           // recorded

  RuntimeCounts& operator+=(const RuntimeCounts& more);
  RuntimeCounts operator-(const RuntimeCounts& before) const;  // what was asked since
};

struct HostStream;
struct HostEvent;
struct HostGraph;

// cuda::Runtime without a GPU: streams are queues. When an operation runs is drawn from the seed (kernel_run.h): at once,
// or as late as somebody waits for it, or in between, in any interleaving of the streams that their events allow. A
// kernel of LaunchEarly may begin before the kernel in front of it.
//
// Errors are those of a GPU where it would report one. What it would silently get wrong throws RuntimeMisuse: a range
// that leaves its allocation, a handle or memory after its end, pinned memory freed before the copy that needs it, a
// write behind an allocation. A fault of a kernel throws KernelFault where the kernel runs. Every later call fails.
//
// Memory is as in device_memory.h. From when a copy to the host is enqueued until it runs, its target is NaN unless
// other work is still to read it. One stream is recorded at a time by a thread, and no other one joins its recording.
class HostRuntime final : public cuda::Runtime {
 public:
  enum class Schedule { kDrawn, kEarly, kLate };
  struct Options {
    int64_t memory_bytes = int64_t{1} << 32;
    int multiprocessors = 6;
    Schedule schedule = Schedule::kDrawn;
  };

  HostRuntime() : HostRuntime(Options()) {}
  explicit HostRuntime(const Options& options);
  ~HostRuntime() override;

  RuntimeCounts counts() const;
  std::map<std::string, int64_t> LaunchesByKernel() const;  // by the type of a kernel's arguments, graphs included

  // The device fails once that many more operations (of queues; a graph's work counts each) have run: that one's
  // results are lost, the next wait and every call from then on returns `error`.
  void BreakAfter(int64_t operations, cuda::Error error = "unspecified launch failure");

  // What was made and not deleted, for people; empty: nothing.
  std::string Alive() const;

  cuda::Error Properties(cuda::DeviceProperties* properties) override;
  cuda::Error MemoryInfo(int64_t* free_bytes, int64_t* total_bytes) override;
  cuda::Error Allocate(int64_t bytes, void** device) override;
  cuda::Error Free(void* device) override;
  cuda::Error AllocatePinned(int64_t bytes, void** host) override;
  cuda::Error FreePinned(void* host) override;
  cuda::Error NewStream(cuda::Stream* stream) override;
  cuda::Error DeleteStream(cuda::Stream stream) override;
  cuda::Error NewEvent(cuda::Event* event, bool timed) override;
  cuda::Error DeleteEvent(cuda::Event event) override;
  cuda::Error CopyToDevice(cuda::Stream stream, void* device, const void* host, int64_t bytes) override;
  cuda::Error CopyToHost(cuda::Stream stream, void* host, const void* device, int64_t bytes) override;
  cuda::Error CopyOnDevice(cuda::Stream stream, void* to, const void* from, int64_t bytes) override;
  cuda::Error Fill(cuda::Stream stream, void* device, uint8_t byte, int64_t bytes) override;
  cuda::Error Record(cuda::Stream stream, cuda::Event event) override;
  cuda::Error WaitFor(cuda::Stream stream, cuda::Event event) override;
  cuda::Error Synchronize(cuda::Stream stream) override;
  cuda::Error Synchronize(cuda::Event event) override;
  cuda::Error Milliseconds(cuda::Event begin, cuda::Event end, float* milliseconds) override;
  cuda::Error BeginRecording(cuda::Stream stream) override;
  cuda::Error EndRecording(cuda::Stream stream, cuda::Graph* graph) override;
  cuda::Error Launch(cuda::Stream stream, cuda::Graph graph) override;
  cuda::Error DeleteGraph(cuda::Graph graph) override;

 private:
  friend HostStream;

  HostStream& Known(cuda::Stream stream);
  HostEvent& Known(cuda::Event event);
  HostGraph& Known(cuda::Graph graph);
  HostStream* RecordedByThisThread();
  cuda::Error ForbidWhileRecording();
  RuntimeCounts& CountsOf(HostStream& stream);
  cuda::Error Enqueue(HostStream& stream, Operation operation);
  cuda::Error EnqueueKernel(HostStream& stream, KernelLaunch launch);
  cuda::Error CheckHostMemory(HostStream& stream, const void* host, int64_t bytes);
  void CheckAllMemory() const;

  const Options options_;
  mutable std::mutex mutex_;
  RuntimeCounts counts_;
  std::map<std::string, int64_t> launches_by_kernel_;
  DeviceMemory device_memory_;
  DeviceMemory pinned_memory_;
  WorkQueues queues_;
  // Deleted ones stay, so that no address is given twice and a use after the end is seen.
  std::vector<std::unique_ptr<HostStream>> streams_;
  std::vector<std::unique_ptr<HostEvent>> events_;
  std::vector<std::unique_ptr<HostGraph>> graphs_;
};

}  // namespace c3po::host_cuda

#endif  // C3PO_TESTS_HOST_CUDA_RUNTIME_H_
