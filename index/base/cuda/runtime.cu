// The seam on the CUDA runtime. One device: the first that the process sees, by its primary context, which libtorch
// shares and nobody resets. Threads other than libtorch's never choose a device, so that they are on it by default.

#include "index/base/cuda/runtime.h"

#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>

#include "index/base/cuda/driver_check.h"

namespace c3po::cuda {
namespace {

cudaStream_t Native(Stream stream) { return reinterpret_cast<cudaStream_t>(stream); }
cudaEvent_t Native(Event event) { return reinterpret_cast<cudaEvent_t>(event); }
cudaGraphExec_t Native(Graph graph) { return reinterpret_cast<cudaGraphExec_t>(graph); }

// Null where `code` is success. What is reported here is taken from the thread's last error, or the next launch that is
// asked whether it failed would be blamed for it.
Error Describe(const char* what, cudaError_t code) {
  if (code == cudaSuccess) return nullptr;
  static_cast<void>(cudaGetLastError());
  thread_local char text[256];
  std::snprintf(text, sizeof text, "%s: %s", what, cudaGetErrorString(code));
  return text;
}

// What this thread records. CUDA fails some of the calls that a graph cannot hold, and lets others pass; here all of them
// fail alike, and the recording with them.
struct Recording {
  bool active = false;
  Error fault = nullptr;

  Error Fail(Error why) {
    if (fault == nullptr) fault = why;
    return why;
  }
};
thread_local Recording recording;

Error ForbidWhileRecording() {
  return recording.active ? recording.Fail("memory is not allocated or freed while a stream is recorded") : nullptr;
}

// CUDA would record a copy of pageable memory, and stage it at each launch of the graph.
Error CheckPinnedIfRecorded(Stream stream, const void* host) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (!recording.active || cudaStreamIsCapturing(Native(stream), &status) != cudaSuccess ||
      status == cudaStreamCaptureStatusNone) {
    return nullptr;
  }
  cudaPointerAttributes attributes = {};
  if (cudaPointerGetAttributes(&attributes, host) == cudaSuccess && attributes.type == cudaMemoryTypeHost) return nullptr;
  static_cast<void>(cudaGetLastError());
  return recording.Fail("host memory of a recorded copy is not pinned");
}

class DeviceRuntime final : public Runtime {
 public:
  explicit DeviceRuntime(const DeviceProperties& properties) : properties_(properties) {}

  Error Properties(DeviceProperties* properties) override {
    *properties = properties_;
    return nullptr;
  }

  Error MemoryInfo(int64_t* free_bytes, int64_t* total_bytes) override {
    size_t free = 0, total = 0;
    const Error error = Describe("memory information", cudaMemGetInfo(&free, &total));
    *free_bytes = static_cast<int64_t>(free);
    *total_bytes = static_cast<int64_t>(total);
    return error;
  }

  Error Allocate(int64_t bytes, void** device) override {
    *device = nullptr;
    if (const Error error = ForbidWhileRecording()) return error;
    if (bytes <= 0) return "allocation of no bytes";  // cudaMalloc gives null for it, and calls that success.
    return Describe("allocation", cudaMalloc(device, static_cast<size_t>(bytes)));
  }
  Error Free(void* device) override {
    if (const Error error = ForbidWhileRecording()) return error;
    return Describe("free", cudaFree(device));
  }

  Error AllocatePinned(int64_t bytes, void** host) override {
    *host = nullptr;
    if (const Error error = ForbidWhileRecording()) return error;
    if (bytes <= 0) return "allocation of no bytes";
    return Describe("pinned allocation", cudaHostAlloc(host, static_cast<size_t>(bytes), cudaHostAllocDefault));
  }
  Error FreePinned(void* host) override {
    if (const Error error = ForbidWhileRecording()) return error;
    return Describe("free of pinned memory", cudaFreeHost(host));
  }

  // Non-blocking: work of the legacy default stream, which libtorch may use, does not order ours.
  Error NewStream(Stream* stream) override {
    cudaStream_t made = nullptr;
    const Error error = Describe("new stream", cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking));
    *stream = reinterpret_cast<Stream>(made);
    return error;
  }
  Error DeleteStream(Stream stream) override {
    return Describe("deletion of a stream", cudaStreamDestroy(Native(stream)));
  }

  Error NewEvent(Event* event, bool timed) override {
    cudaEvent_t made = nullptr;
    const unsigned flags = timed ? cudaEventDefault : cudaEventDisableTiming;
    const Error error = Describe("new event", cudaEventCreateWithFlags(&made, flags));
    *event = reinterpret_cast<Event>(made);
    return error;
  }
  Error DeleteEvent(Event event) override {
    return Describe("deletion of an event", cudaEventDestroy(Native(event)));
  }

  Error CopyToDevice(Stream stream, void* device, const void* host, int64_t bytes) override {
    if (const Error error = CheckPinnedIfRecorded(stream, host)) return error;
    return Copy("copy to the device", stream, device, host, bytes, cudaMemcpyHostToDevice);
  }
  Error CopyToHost(Stream stream, void* host, const void* device, int64_t bytes) override {
    if (const Error error = CheckPinnedIfRecorded(stream, host)) return error;
    return Copy("copy to the host", stream, host, device, bytes, cudaMemcpyDeviceToHost);
  }
  Error CopyOnDevice(Stream stream, void* to, const void* from, int64_t bytes) override {
    return Copy("copy on the device", stream, to, from, bytes, cudaMemcpyDeviceToDevice);
  }
  Error Fill(Stream stream, void* device, uint8_t byte, int64_t bytes) override {
    return Describe("fill", cudaMemsetAsync(device, byte, static_cast<size_t>(bytes), Native(stream)));
  }

  Error Record(Stream stream, Event event) override {
    return Describe("record of an event", cudaEventRecord(Native(event), Native(stream)));
  }
  Error WaitFor(Stream stream, Event event) override {
    return Describe("wait for an event", cudaStreamWaitEvent(Native(stream), Native(event), 0));
  }

  Error Synchronize(Stream stream) override {
    return Describe("work of a stream", cudaStreamSynchronize(Native(stream)));
  }
  Error Synchronize(Event event) override {
    return Describe("work before an event", cudaEventSynchronize(Native(event)));
  }
  Error Milliseconds(Event begin, Event end, float* milliseconds) override {
    return Describe("time between events", cudaEventElapsedTime(milliseconds, Native(begin), Native(end)));
  }

  // Thread-local: while one thread records, others allocate and wait as ever, libtorch's among them, which a global
  // capture would fail. Relaxed would let this thread allocate as well, which a graph cannot hold.
  Error BeginRecording(Stream stream) override {
    if (recording.active) return recording.Fail("a thread records one stream at a time");
    const cudaError_t code = cudaStreamBeginCapture(Native(stream), cudaStreamCaptureModeThreadLocal);
    recording = {code == cudaSuccess, nullptr};
    return Describe("begin of a recording", code);
  }
  Error EndRecording(Stream stream, Graph* graph) override {
    *graph = nullptr;
    const Recording ended = recording;
    recording = {};
    cudaGraph_t recorded = nullptr;
    const cudaError_t code = cudaStreamEndCapture(Native(stream), &recorded);
    cudaGraphExec_t made = nullptr;
    const bool is_whole = code == cudaSuccess && ended.fault == nullptr;
    const cudaError_t instantiated = is_whole ? cudaGraphInstantiate(&made, recorded, 0) : cudaSuccess;
    if (recorded != nullptr) static_cast<void>(cudaGraphDestroy(recorded));
    const Error error = Describe("end of a recording", code);
    if (ended.fault != nullptr) return ended.fault;  // It came first.
    if (error != nullptr) return error;
    if (const Error failed = Describe("instantiation of a graph", instantiated)) return failed;
    // Else the first launch would carry the graph to the device, in the middle of a step.
    if (const Error failed = Describe("upload of a graph", cudaGraphUpload(made, Native(stream)))) {
      static_cast<void>(cudaGraphExecDestroy(made));
      return failed;
    }
    *graph = reinterpret_cast<Graph>(made);
    return nullptr;
  }
  Error Launch(Stream stream, Graph graph) override {
    return Describe("launch of a graph", cudaGraphLaunch(Native(graph), Native(stream)));
  }
  Error DeleteGraph(Graph graph) override {
    return Describe("deletion of a graph", cudaGraphExecDestroy(Native(graph)));
  }

 private:
  static Error Copy(const char* what, Stream stream, void* to, const void* from, int64_t bytes, cudaMemcpyKind kind) {
    return Describe(what, cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), kind, Native(stream)));
  }

  const DeviceProperties properties_;
};

constexpr int kProbeThreads = 64;
constexpr uint32_t kProbeValue = 0x9E3779B9u;  // Any value that memory does not hold by chance.

__global__ void WriteThreadNumbers(uint32_t* out) { out[threadIdx.x] = kProbeValue * (threadIdx.x + 1); }

// Whether code of this library runs on the device, and does what it says.
cudaError_t RunProbe(bool* has_code) {
  *has_code = false;
  cudaFuncAttributes attributes = {};
  const cudaError_t loaded = cudaFuncGetAttributes(&attributes, WriteThreadNumbers);
  if (loaded == cudaErrorNoKernelImageForDevice || loaded == cudaErrorInvalidDeviceFunction) return cudaSuccess;
  if (loaded != cudaSuccess) return loaded;
  uint32_t* device = nullptr;
  cudaStream_t stream = nullptr;
  uint32_t values[kProbeThreads] = {};
  cudaError_t code = cudaMalloc(&device, sizeof values);
  if (code == cudaSuccess) code = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (code == cudaSuccess) {
    WriteThreadNumbers<<<1, kProbeThreads, 0, stream>>>(device);
    code = cudaGetLastError();
  }
  if (code == cudaSuccess) code = cudaMemcpyAsync(values, device, sizeof values, cudaMemcpyDeviceToHost, stream);
  if (code == cudaSuccess) code = cudaStreamSynchronize(stream);
  if (stream != nullptr) static_cast<void>(cudaStreamDestroy(stream));
  static_cast<void>(cudaFree(device));
  for (int i = 0; code == cudaSuccess && i < kProbeThreads; ++i) {
    if (values[i] != kProbeValue * static_cast<uint32_t>(i + 1)) code = cudaErrorLaunchFailure;
  }
  *has_code = code == cudaSuccess;
  return code;
}

cudaError_t ReadProperties(DeviceProperties* properties) {
  cudaDeviceProp read = {};
  const cudaError_t code = cudaGetDeviceProperties(&read, 0);
  if (code != cudaSuccess) return code;
  std::snprintf(properties->name, sizeof properties->name, "%s", read.name);
  properties->compute_major = read.major;
  properties->compute_minor = read.minor;
  properties->multiprocessors = read.multiProcessorCount;
  properties->memory_bytes = static_cast<int64_t>(read.totalGlobalMem);
  properties->l2_bytes = read.l2CacheSize;
  properties->shared_bytes_per_block = static_cast<int>(read.sharedMemPerBlockOptin);
  return cudaSuccess;
}

Runtime* Open(Error* error) {
  DriverState state;
  DeviceProperties properties;
  static_cast<void>(cudaRuntimeGetVersion(&state.runtime_version));
  static_cast<void>(cudaDriverGetVersion(&state.driver_version));
  cudaError_t code = cudaGetDeviceCount(&state.devices);
  if (code == cudaErrorNoDevice) state.devices = 0, code = cudaSuccess;
  if (code == cudaSuccess && state.devices > 0) code = ReadProperties(&properties);
  if (code == cudaSuccess && state.devices > 0 && properties.compute_major >= kComputeMajorMin) {
    code = cudaSetDevice(0);  // Makes the primary context.
    if (code == cudaSuccess) code = RunProbe(&state.has_code);
  }
  static_cast<void>(cudaGetLastError());
  if (code != cudaSuccess) state.failure = cudaGetErrorString(code);
  state.name = properties.name;
  state.compute_major = properties.compute_major;
  state.compute_minor = properties.compute_minor;
  *error = WhyNoDevice(state);
  return *error == nullptr ? new DeviceRuntime(properties) : nullptr;
}

}  // namespace
}  // namespace c3po::cuda

C3PO_CUDA_EXPORT c3po::cuda::Runtime* c3po_cuda_runtime(int version, c3po::cuda::Error* error) {
  using namespace c3po::cuda;
  *error = nullptr;
  if (version != kCudaLibraryVersion) return nullptr;
  struct Opened {
    char text[512] = {};
    Runtime* runtime = nullptr;
  };
  static const Opened opened = [] {
    Opened made;
    Error why = nullptr;
    made.runtime = Open(&why);
    if (why != nullptr) std::snprintf(made.text, sizeof made.text, "%s", why);
    return made;
  }();
  *error = opened.runtime == nullptr ? opened.text : nullptr;
  return opened.runtime;
}
