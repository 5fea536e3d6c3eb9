#ifndef C3PO_INDEX_BASE_CUDA_RUNTIME_H_
#define C3PO_INDEX_BASE_CUDA_RUNTIME_H_

#include <cstddef>
#include <cstdint>

// The CUDA runtime as c3po uses it. Whatever plans work for a GPU reaches it through this interface, so that the same
// plans run on a host without one: libc3po_cuda.so implements it by the CUDA runtime, tests/host_cuda by the execution
// model of the tests. No type of CUDA's, and none of a library's, crosses.
namespace c3po::cuda {

// What went wrong, in a few words without a period; null: nothing did. Static text, or valid until the thread's next
// failing call. After a failed kernel every call of that device fails: it can only be ended.
using Error = const char*;

// A queue of work that runs in order. Two streams wait for each other by events only. On the device a Stream is a
// cudaStream_t by another name: what launches kernels hands it on.
struct StreamHandle;
using Stream = StreamHandle*;
struct EventHandle;
using Event = EventHandle*;
struct GraphHandle;
using Graph = GraphHandle*;  // recorded work, ready to be launched again and again

struct DeviceProperties {
  char name[256] = {};
  int compute_major = 0, compute_minor = 0;
  int multiprocessors = 0;
  int64_t memory_bytes = 0;
  int64_t l2_bytes = 0;
  int shared_bytes_per_block = 0;  // dynamic, at most
};

// One device, which the process uses alone of those it sees. Thread-safe, but for a stream: one thread at a time.
class Runtime {
 public:
  virtual ~Runtime() = default;

  virtual Error Properties(DeviceProperties* properties) = 0;
  virtual Error MemoryInfo(int64_t* free_bytes, int64_t* total_bytes) = 0;

  // Memory of the device, of unknown content, 256-byte aligned; and of the host, which copies go to and from without a
  // detour. Bytes > 0. Neither may be asked for while a stream is recorded. Free waits for all work of the device.
  virtual Error Allocate(int64_t bytes, void** device) = 0;
  virtual Error Free(void* device) = 0;
  virtual Error AllocatePinned(int64_t bytes, void** host) = 0;
  virtual Error FreePinned(void* host) = 0;

  virtual Error NewStream(Stream* stream) = 0;
  virtual Error DeleteStream(Stream stream) = 0;
  // `timed`: Milliseconds may be asked of it. Others cost the device less.
  virtual Error NewEvent(Event* event, bool timed = false) = 0;
  virtual Error DeleteEvent(Event event) = 0;

  // Enqueued. Host memory is read or written when the stream comes to it, so it stays as it is until then; where it is
  // not pinned the call may wait, and none may be recorded.
  virtual Error CopyToDevice(Stream stream, void* device, const void* host, int64_t bytes) = 0;
  virtual Error CopyToHost(Stream stream, void* host, const void* device, int64_t bytes) = 0;
  virtual Error CopyOnDevice(Stream stream, void* to, const void* from, int64_t bytes) = 0;  // ranges do not overlap
  virtual Error Fill(Stream stream, void* device, uint8_t byte, int64_t bytes) = 0;

  virtual Error Record(Stream stream, Event event) = 0;   // The event happens once the stream comes to it.
  virtual Error WaitFor(Stream stream, Event event) = 0;  // What is enqueued from now on runs after the event.

  // Wait on the host. An error of earlier work of the stream comes out here.
  virtual Error Synchronize(Stream stream) = 0;
  virtual Error Synchronize(Event event) = 0;
  virtual Error Milliseconds(Event begin, Event end, float* milliseconds) = 0;  // of timed ones that have happened

  // What is enqueued between the two is recorded, not run. Launches take the values of their arguments then, addresses
  // among them; what lies at these is read at each launch of the graph. A thread records one stream at a time. What
  // cannot be recorded is an error, and EndRecording gives it again instead of a graph.
  virtual Error BeginRecording(Stream stream) = 0;
  virtual Error EndRecording(Stream stream, Graph* graph) = 0;
  virtual Error Launch(Stream stream, Graph graph) = 0;
  virtual Error DeleteGraph(Graph graph) = 0;
};

// What libc3po_cuda.so exports as `c3po_cuda_runtime`; the tables of kernels are functions of its own beside it. Both
// sides are built together: each of these functions gives null for another version, this one without an error. Else
// `error` says why there is no runtime: no driver, no device, one of another kind than the library was compiled for.
inline constexpr int kCudaLibraryVersion = 1;
using OpenRuntimeFunction = Runtime* (*)(int version, Error* error);  // The runtime lives as long as the process.

}  // namespace c3po::cuda

// Before the definition of what libc3po_cuda.so exports; deploy/cmake/c3po_cuda.map lists the names.
#define C3PO_CUDA_EXPORT extern "C" __attribute__((visibility("default")))

#endif  // C3PO_INDEX_BASE_CUDA_RUNTIME_H_
