// What this machine's GPU does: the figures that floors and marks are computed from. One line of JSON each, on standard
// output; under half a minute.
//   gpu_probe [--wait auto|spin|yield|block]    how the host waits for the device (cudaSetDeviceFlags)
//   gpu_probe --present                         only whether there is a GPU
// Exit code 1: no GPU, or a figure whose result is wrong; the reason is on standard error.

#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#include "index/base/cuda/device.h"
#include "index/base/cuda/driver_check.h"

namespace c3po::device {
namespace {

constexpr double kMicro = 1e-6;
constexpr int64_t kMiB = int64_t{1} << 20;

void Check(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  std::fprintf(stderr, "device cuda: %s: %s\n", what, cudaGetErrorString(code));
  std::exit(1);
}
#define CHECK_CUDA(call) Check(call, #call)

void Require(Error error, const char* what) {
  if (error == nullptr) return;
  std::fprintf(stderr, "device cuda: %s: %s\n", what, error);
  std::exit(1);
}

void Print(const char* figure, const char* of, double value, const char* unit) {
  std::printf("{\"figure\": \"%s\", \"of\": \"%s\", \"value\": %.6g, \"unit\": \"%s\"}\n", figure, of, value, unit);
  std::fflush(stdout);
}

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Device {
  cudaStream_t stream = nullptr;
  cudaEvent_t begin = nullptr, end = nullptr;
  int multiprocessors = 0;
  bool has_early_launch = false;

  Stream queue() const { return reinterpret_cast<Stream>(stream); }

  // Seconds on the device of what `enqueue` puts into the stream; the best of `rounds`.
  double Seconds(int rounds, const std::function<void()>& enqueue) const {
    double best = 1e9;
    for (int i = 0; i < rounds; ++i) {
      CHECK_CUDA(cudaEventRecord(begin, stream));
      enqueue();
      CHECK_CUDA(cudaEventRecord(end, stream));
      CHECK_CUDA(cudaEventSynchronize(end));
      float milliseconds = 0;
      CHECK_CUDA(cudaEventElapsedTime(&milliseconds, begin, end));
      best = std::min(best, milliseconds * 1e-3);
    }
    return best;
  }

  // The median of wall times of `once`, which ends with a wait.
  static double WallSeconds(int rounds, const std::function<void()>& once) {
    for (int i = 0; i < 20; ++i) once();
    std::vector<double> seconds;
    for (int i = 0; i < rounds; ++i) {
      const double start = Now();
      once();
      seconds.push_back(Now() - start);
    }
    return Median(std::move(seconds));
  }

  cudaGraphExec_t Record(const std::function<void()>& enqueue) const {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t made = nullptr;
    CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    enqueue();
    CHECK_CUDA(cudaStreamEndCapture(stream, &graph));
    CHECK_CUDA(cudaGraphInstantiate(&made, graph, 0));
    CHECK_CUDA(cudaGraphDestroy(graph));
    CHECK_CUDA(cudaGraphUpload(made, stream));
    CHECK_CUDA(cudaStreamSynchronize(stream));
    return made;
  }
};

// --- Bandwidth ---
constexpr int kReadThreads = 512, kReadUnroll = 8;

struct ReadArgs {
  const Words4* from;
  int64_t words;  // of 16 bytes
  uint32_t* sums;  // [Blocks() * Threads()]
};

// Every word once, eight loads under way in each thread.
C3PO_KERNEL void C3PO_BOUNDS(kReadThreads, 2) Read(ReadArgs args) {
  const int64_t stride = int64_t{Blocks()} * Threads();
  const int64_t first = int64_t{Block()} * Threads() + Thread();
  uint32_t sum = 0;
  int64_t i = first;
  for (; i + (kReadUnroll - 1) * stride < args.words; i += kReadUnroll * stride) {
    Words4 words[kReadUnroll];
    C3PO_UNROLL for (int u = 0; u < kReadUnroll; ++u) words[u] = LoadOnce(args.from + i + u * stride);
    C3PO_UNROLL for (int u = 0; u < kReadUnroll; ++u) {
      sum += words[u].x[0] + words[u].x[1] + words[u].x[2] + words[u].x[3];
    }
  }
  for (; i < args.words; i += stride) {
    const Words4 words = LoadOnce(args.from + i);
    sum += words.x[0] + words.x[1] + words.x[2] + words.x[3];
  }
  args.sums[first] = sum;
}

void ProbeReads(const Device& device, void* memory, int64_t bytes_max) {
  constexpr int kBlocksPerMultiprocessor = 2;
  const int blocks = device.multiprocessors * kBlocksPerMultiprocessor;
  const size_t threads = static_cast<size_t>(blocks) * kReadThreads;
  uint32_t* sums = nullptr;
  CHECK_CUDA(cudaMalloc(&sums, threads * sizeof(uint32_t)));
  CHECK_CUDA(cudaMemsetAsync(memory, 1, static_cast<size_t>(bytes_max), device.stream));
  for (const int64_t bytes : {8 * kMiB, 64 * kMiB, 1024 * kMiB, 4096 * kMiB}) {
    if (bytes > bytes_max) continue;
    const ReadArgs args = {static_cast<const Words4*>(memory), bytes / 16, sums};
    const auto read = [&] { Require(Launch(Read, Grid{blocks}, kReadThreads, 0, device.queue(), args), "read"); };
    read();
    const double seconds = device.Seconds(10, read);
    std::vector<uint32_t> host(threads);
    CHECK_CUDA(cudaMemcpy(host.data(), sums, threads * sizeof(uint32_t), cudaMemcpyDeviceToHost));
    uint32_t sum = 0;
    for (const uint32_t part : host) sum += part;
    const auto expected = static_cast<uint32_t>(0x01010101u * static_cast<uint64_t>(bytes / 4));
    if (sum != expected) {
      std::fprintf(stderr, "device cuda: %lld bytes were read wrong\n", static_cast<long long>(bytes));
      std::exit(1);
    }
    char of[32];
    std::snprintf(of, sizeof of, "%lld MiB", static_cast<long long>(bytes / kMiB));
    Print("read", of, static_cast<double>(bytes) / seconds * 1e-12, "TB/s");
  }
  CHECK_CUDA(cudaFree(sums));
}

void ProbeCopies(const Device& device, void* memory, int64_t bytes_max) {
  const int64_t half = bytes_max / 2;
  char* const to = static_cast<char*>(memory) + half;
  const double on_device = device.Seconds(10, [&] {
    CHECK_CUDA(cudaMemcpyAsync(to, memory, static_cast<size_t>(half), cudaMemcpyDeviceToDevice, device.stream));
  });
  Print("copy on the device", "read and written", 2.0 * static_cast<double>(half) / on_device * 1e-12, "TB/s");
  const int64_t bytes = 256 * kMiB;
  const auto size = static_cast<size_t>(bytes);
  void* pinned = nullptr;
  CHECK_CUDA(cudaHostAlloc(&pinned, size, cudaHostAllocDefault));
  std::memset(pinned, 2, size);
  std::vector<char> pageable(size, 3);
  const struct {
    const char* of;
    void* host;
  } kinds[] = {{"pinned", pinned}, {"pageable", pageable.data()}};
  for (const auto& kind : kinds) {
    const double up = device.Seconds(
        3, [&] { CHECK_CUDA(cudaMemcpyAsync(memory, kind.host, size, cudaMemcpyHostToDevice, device.stream)); });
    Print("copy to the device", kind.of, static_cast<double>(bytes) / up * 1e-9, "GB/s");
    const double down = device.Seconds(
        3, [&] { CHECK_CUDA(cudaMemcpyAsync(kind.host, memory, size, cudaMemcpyDeviceToHost, device.stream)); });
    Print("copy to the host", kind.of, static_cast<double>(bytes) / down * 1e-9, "GB/s");
  }
  CHECK_CUDA(cudaFreeHost(pinned));
}

// --- Launches ---
struct NodeArgs {
  uint32_t* counter;  // Each launch adds one to it, so that the number of launches is checked.
};

C3PO_KERNEL void Node(NodeArgs args) {
  WaitForPreviousKernel();
  LetNextKernelStart();
  if (Block() == 0 && Thread() == 0) *args.counter += 1;
}

void ProbeNodes(const Device& device) {
  constexpr int kFew = 100, kMany = 1100, kRounds = 10;
  uint32_t* counter = nullptr;
  CHECK_CUDA(cudaMalloc(&counter, sizeof *counter));
  CHECK_CUDA(cudaMemset(counter, 0, sizeof *counter));
  uint32_t launches = 0;
  const auto enqueue = [&](int nodes, int blocks, bool early) {
    for (int i = 0; i < nodes; ++i) {
      const NodeArgs args = {counter};
      Require(early ? LaunchEarly(Node, Grid{blocks}, 128, 0, device.queue(), args)
                    : Launch(Node, Grid{blocks}, 128, 0, device.queue(), args),
              "node");
    }
  };
  const struct {
    const char* of;
    int blocks;
    bool early;
  } kinds[] = {{"one block", 1, false},
               {"a block a multiprocessor", device.multiprocessors, false},
               {"one block, programmatic launch", 1, true},
               {"a block a multiprocessor, programmatic launch", device.multiprocessors, true}};
  for (const auto& kind : kinds) {
    if (kind.early && !device.has_early_launch) continue;
    double seconds[2];
    for (int i = 0; i < 2; ++i) {
      const int nodes = i == 0 ? kFew : kMany;
      cudaGraphExec_t graph = device.Record([&] { enqueue(nodes, kind.blocks, kind.early); });
      seconds[i] = device.Seconds(kRounds, [&] { CHECK_CUDA(cudaGraphLaunch(graph, device.stream)); });
      launches += static_cast<uint32_t>(kRounds * nodes);
      CHECK_CUDA(cudaGraphExecDestroy(graph));
    }
    Print("node of a graph", kind.of, (seconds[1] - seconds[0]) / (kMany - kFew) / kMicro, "us");
  }
  const double start = Now();
  const double on_device = device.Seconds(1, [&] { enqueue(kMany, 1, false); });
  Print("launch in a stream", "one block", on_device / kMany / kMicro, "us");
  Print("launch in a stream", "host and device", (Now() - start) / kMany / kMicro, "us");
  launches += kMany;
  uint32_t counted = 0;
  CHECK_CUDA(cudaMemcpy(&counted, counter, sizeof counted, cudaMemcpyDeviceToHost));
  if (counted != launches) {
    std::fprintf(stderr, "device cuda: %u of %u launches ran\n", counted, launches);
    std::exit(1);
  }
  CHECK_CUDA(cudaFree(counter));
}

// --- A step's way to the device and back ---
constexpr int64_t kStepBytesIn = 1300, kStepBytesOut = 256;  // Metadata of a step, and its sampled tokens.

struct StepArgs {
  const uint8_t* in;
  uint8_t* out;
};

C3PO_KERNEL void Step(StepArgs args) { args.out[Thread()] = static_cast<uint8_t>(args.in[Thread()] + 1); }

void ProbeRoundTrip(const Device& device) {
  uint8_t *in = nullptr, *out = nullptr, *device_in = nullptr, *device_out = nullptr;
  CHECK_CUDA(cudaHostAlloc(&in, kStepBytesIn, cudaHostAllocDefault));
  CHECK_CUDA(cudaHostAlloc(&out, kStepBytesOut, cudaHostAllocDefault));
  CHECK_CUDA(cudaMalloc(&device_in, kStepBytesIn));
  CHECK_CUDA(cudaMalloc(&device_out, kStepBytesOut));
  std::memset(in, 0, kStepBytesIn);
  const auto enqueue = [&] {
    CHECK_CUDA(cudaMemcpyAsync(device_in, in, kStepBytesIn, cudaMemcpyHostToDevice, device.stream));
    Require(Launch(Step, Grid{1}, kStepBytesOut, 0, device.queue(), StepArgs{device_in, device_out}), "step");
    CHECK_CUDA(cudaMemcpyAsync(out, device_out, kStepBytesOut, cudaMemcpyDeviceToHost, device.stream));
  };
  cudaGraphExec_t graph = device.Record(enqueue);
  uint8_t value = 0;
  const auto trip = [&](const std::function<void()>& start) {
    in[kStepBytesOut - 1] = ++value;
    start();
    CHECK_CUDA(cudaStreamSynchronize(device.stream));
    if (out[kStepBytesOut - 1] != static_cast<uint8_t>(value + 1)) {
      std::fprintf(stderr, "device cuda: a round trip gave the bytes of another one\n");
      std::exit(1);
    }
  };
  Print("pinned round trip", "in a stream", Device::WallSeconds(1000, [&] { trip(enqueue); }) / kMicro, "us");
  Print("pinned round trip", "one graph", Device::WallSeconds(1000, [&] {
          trip([&] { CHECK_CUDA(cudaGraphLaunch(graph, device.stream)); });
        }) / kMicro,
        "us");
  CHECK_CUDA(cudaGraphExecDestroy(graph));
  CHECK_CUDA(cudaFree(device_in));
  CHECK_CUDA(cudaFree(device_out));
  CHECK_CUDA(cudaFreeHost(in));
  CHECK_CUDA(cudaFreeHost(out));
}

// --- Waits ---
struct HoldArgs {
  long long cycles;
  volatile uint32_t* flag;  // of the host; set when the time is over
  uint32_t value;
};

C3PO_KERNEL void Hold(HoldArgs args) {
  const long long start = clock64();
  while (clock64() - start < args.cycles) {
  }
  *args.flag = args.value;
  __threadfence_system();
}

// What a wait takes beyond the kernel that is waited for, by each way to wait.
void ProbeWaits(const Device& device) {
  uint32_t* flag = nullptr;
  CHECK_CUDA(cudaHostAlloc(&flag, sizeof *flag, cudaHostAllocMapped));
  uint32_t value = *flag = 0;
  const auto hold = [&] { Require(Launch(Hold, Grid{1}, 32, 0, device.queue(), HoldArgs{100'000, flag, ++value}), "hold"); };
  hold();
  const double alone = device.Seconds(20, hold);
  cudaEvent_t event = nullptr;
  CHECK_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  const std::pair<const char*, std::function<void()>> waits[] = {
      {"for the stream", [&] { CHECK_CUDA(cudaStreamSynchronize(device.stream)); }},
      {"for an event",
       [&] {
         CHECK_CUDA(cudaEventRecord(event, device.stream));
         CHECK_CUDA(cudaEventSynchronize(event));
       }},
      {"asking an event",
       [&] {
         CHECK_CUDA(cudaEventRecord(event, device.stream));
         while (cudaEventQuery(event) == cudaErrorNotReady) {
         }
       }},
      {"asking pinned memory",
       [&] {
         while (*const_cast<volatile uint32_t*>(flag) != value) {
         }
       }},
  };
  for (const auto& [of, wait] : waits) {
    const double seconds = Device::WallSeconds(300, [&] {
      hold();
      wait();
    });
    Print("launch and wait beyond the kernel", of, (seconds - alone) / kMicro, "us");
  }
  CHECK_CUDA(cudaStreamSynchronize(device.stream));
  CHECK_CUDA(cudaEventDestroy(event));
  CHECK_CUDA(cudaFreeHost(flag));
}

// The sentence of `--device cuda` where there is no GPU; which kind it is, the first kernel tells.
void RequireDevice() {
  cuda::DriverState state;
  CHECK_CUDA(cudaRuntimeGetVersion(&state.runtime_version));
  CHECK_CUDA(cudaDriverGetVersion(&state.driver_version));
  const cudaError_t code = cudaGetDeviceCount(&state.devices);
  if (code != cudaSuccess && code != cudaErrorNoDevice) state.failure = cudaGetErrorString(code);
  state.compute_major = cuda::kComputeMajorMin;
  state.has_code = true;
  if (const Error why = cuda::WhyNoDevice(state)) {
    std::fprintf(stderr, "device cuda: %s\n", why);
    std::exit(1);
  }
}

int Run(unsigned wait_flags) {
  RequireDevice();
  CHECK_CUDA(cudaSetDeviceFlags(wait_flags));
  CHECK_CUDA(cudaSetDevice(0));
  cudaDeviceProp properties = {};
  CHECK_CUDA(cudaGetDeviceProperties(&properties, 0));
  Device device;
  device.multiprocessors = properties.multiProcessorCount;
  device.has_early_launch = properties.major >= 9;
  CHECK_CUDA(cudaStreamCreateWithFlags(&device.stream, cudaStreamNonBlocking));
  CHECK_CUDA(cudaEventCreate(&device.begin));
  CHECK_CUDA(cudaEventCreate(&device.end));
  std::printf("{\"device\": \"%s\", \"compute\": \"%d.%d\", \"multiprocessors\": %d}\n", properties.name, properties.major,
              properties.minor, properties.multiProcessorCount);
  size_t free = 0, total = 0;
  CHECK_CUDA(cudaMemGetInfo(&free, &total));
  Print("memory", "free", static_cast<double>(free) * 1e-9, "GB");
  const int64_t bytes = std::min(4096 * kMiB, static_cast<int64_t>(free / 2) / kMiB * kMiB);
  void* memory = nullptr;
  CHECK_CUDA(cudaMalloc(&memory, static_cast<size_t>(bytes)));
  ProbeReads(device, memory, bytes);
  ProbeCopies(device, memory, bytes);
  CHECK_CUDA(cudaFree(memory));
  ProbeNodes(device);
  ProbeRoundTrip(device);
  ProbeWaits(device);
  return 0;
}

}  // namespace
}  // namespace c3po::device

int main(int argc, char** argv) {
  const std::pair<const char*, unsigned> waits[] = {{"auto", cudaDeviceScheduleAuto},
                                                    {"spin", cudaDeviceScheduleSpin},
                                                    {"yield", cudaDeviceScheduleYield},
                                                    {"block", cudaDeviceScheduleBlockingSync}};
  if (argc == 1) return c3po::device::Run(cudaDeviceScheduleAuto);
  if (argc == 2 && std::strcmp(argv[1], "--present") == 0) {
    c3po::device::RequireDevice();
    return 0;
  }
  for (const auto& [name, flags] : waits) {
    if (argc == 3 && std::strcmp(argv[1], "--wait") == 0 && std::strcmp(argv[2], name) == 0) return c3po::device::Run(flags);
  }
  std::fprintf(stderr, "usage: gpu_probe [--wait auto|spin|yield|block | --present]\n");
  return 2;
}
