// What the host runtime enqueues and waits for.

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "tests/host_cuda/runtime.h"
#include "tests/host_cuda/runtime_handles.h"

namespace c3po::host_cuda {

using cuda::Error;

namespace {

constexpr Error kEventOfRecording = "operation not permitted on an event last recorded in a capturing stream";

HostRange RangeOf(const void* memory, int64_t bytes) { return {static_cast<const std::byte*>(memory), bytes}; }

Work WorkOf(KernelLaunch launch) {
  struct Kernel {
    KernelLaunch launch;
    std::unique_ptr<KernelRun> started;
  };
  const auto kernel = std::make_shared<Kernel>();
  kernel->launch = std::move(launch);
  Work work([kernel] {
    const std::unique_ptr<KernelRun> started = std::move(kernel->started);
    if (started != nullptr) {
      started->Finish();
    } else {
      KernelRun(kernel->launch).Finish();
    }
  });
  work.is_kernel = true;
  if (kernel->launch.early) {
    work.start_early = [kernel] {
      kernel->started = std::make_unique<KernelRun>(kernel->launch);
      kernel->started->StartOneBlock();
    };
  }
  return work;
}

}  // namespace

Error HostStream::Enqueue(KernelLaunch launch) {
  if (current_thread != nullptr) Fail("a kernel launches a kernel");
  return runtime.EnqueueKernel(*this, std::move(launch));
}

Error HostRuntime::Enqueue(HostStream& stream, Operation operation) {
  if (stream.recording == nullptr) {
    for (const HostRange& range : operation.writes) {
      // Nobody may count on what was there.
      if (!queues_.WillRead(range) && std::none_of(operation.reads.begin(), operation.reads.end(),
                                                   [&](const HostRange& read) { return read.Overlaps(range); })) {
        std::memset(const_cast<std::byte*>(range.begin), 0xff, static_cast<size_t>(range.bytes));
      }
    }
    queues_.Enqueue(stream.queue, std::move(operation));
    return nullptr;
  }
  Recording& recording = *stream.recording;
  if (recording.invalid != nullptr) return recording.invalid;
  const auto append = [](auto& to, auto& from) { to.insert(to.end(), from.begin(), from.end()); };
  append(recording.operation.work, operation.work);
  append(recording.operation.reads, operation.reads);
  append(recording.operation.writes, operation.writes);
  return nullptr;
}

RuntimeCounts& HostRuntime::CountsOf(HostStream& stream) {
  return stream.recording != nullptr ? stream.recording->counts : counts_;
}

Error HostRuntime::EnqueueKernel(HostStream& enqueuing, KernelLaunch launch) {
  const std::lock_guard<std::mutex> lock(mutex_);
  HostStream& stream = Known(&enqueuing);
  if (queues_.broken() != nullptr) return queues_.broken();
  if (const Error error = LaunchError(launch); error != nullptr) return error;
  if (stream.recording != nullptr) {
    ++stream.recording->counts.graph_kernels;
    ++stream.recording->kernels[launch.name];
  } else {
    ++counts_.kernels;
    ++launches_by_kernel_[launch.name];
  }
  Operation operation;
  operation.work.push_back(WorkOf(std::move(launch)));
  return Enqueue(stream, std::move(operation));
}

// Host memory of a copy: pinned, or, where the copy is not recorded, any.
Error HostRuntime::CheckHostMemory(HostStream& stream, const void* host, int64_t bytes) {
  if (bytes < 0 || (host == nullptr && bytes > 0)) throw RuntimeMisuse("a copy of no host memory");
  if (device_memory_.Has(host)) throw RuntimeMisuse("device memory as the host's end of a copy");
  if (pinned_memory_.Has(host)) {
    pinned_memory_.Check(host, bytes, "copy");
    return nullptr;
  }
  if (stream.recording != nullptr) return stream.recording->invalid = "host memory of a recorded copy is not pinned";
  ++counts_.pageable_copies;
  return nullptr;
}

Error HostRuntime::CopyToDevice(cuda::Stream stream, void* device, const void* host, int64_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  HostStream& known = Known(stream);
  if (queues_.broken() != nullptr) return queues_.broken();
  device_memory_.Check(device, bytes, "copy to the device");
  if (const Error error = CheckHostMemory(known, host, bytes); error != nullptr) return error;
  ++CountsOf(known).copies_to_device;
  CountsOf(known).bytes_to_device += bytes;
  Operation operation;
  operation.reads.push_back(RangeOf(host, bytes));
  operation.work.emplace_back([this, device, host, bytes] {
    device_memory_.Check(device, bytes, "copy to the device");
    std::copy_n(static_cast<const std::byte*>(host), bytes, static_cast<std::byte*>(device));
  });
  return Enqueue(known, std::move(operation));
}

Error HostRuntime::CopyToHost(cuda::Stream stream, void* host, const void* device, int64_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  HostStream& known = Known(stream);
  if (queues_.broken() != nullptr) return queues_.broken();
  device_memory_.Check(device, bytes, "copy to the host");
  if (const Error error = CheckHostMemory(known, host, bytes); error != nullptr) return error;
  ++CountsOf(known).copies_to_host;
  CountsOf(known).bytes_to_host += bytes;
  Operation operation;
  operation.writes.push_back(RangeOf(host, bytes));
  operation.work.emplace_back([this, device, host, bytes] {
    device_memory_.Check(device, bytes, "copy to the host");
    std::copy_n(static_cast<const std::byte*>(device), bytes, static_cast<std::byte*>(host));
  });
  return Enqueue(known, std::move(operation));
}

Error HostRuntime::CopyOnDevice(cuda::Stream stream, void* to, const void* from, int64_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  HostStream& known = Known(stream);
  if (queues_.broken() != nullptr) return queues_.broken();
  device_memory_.Check(to, bytes, "copy on the device");
  device_memory_.Check(from, bytes, "copy on the device");
  if (RangeOf(to, bytes).Overlaps(RangeOf(from, bytes)))
    throw RuntimeMisuse("a copy on the device to where it overlaps itself");
  ++CountsOf(known).copies_on_device;
  CountsOf(known).bytes_on_device += bytes;
  Operation operation;
  operation.work.emplace_back([this, to, from, bytes] {
    device_memory_.Check(to, bytes, "copy on the device");
    device_memory_.Check(from, bytes, "copy on the device");
    std::copy_n(static_cast<const std::byte*>(from), bytes, static_cast<std::byte*>(to));
  });
  return Enqueue(known, std::move(operation));
}

Error HostRuntime::Fill(cuda::Stream stream, void* device, uint8_t byte, int64_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  HostStream& known = Known(stream);
  if (queues_.broken() != nullptr) return queues_.broken();
  device_memory_.Check(device, bytes, "fill");
  ++CountsOf(known).fills;
  Operation operation;
  operation.work.emplace_back([this, device, byte, bytes] {
    device_memory_.Check(device, bytes, "fill");
    std::fill_n(static_cast<uint8_t*>(device), bytes, byte);
  });
  return Enqueue(known, std::move(operation));
}

Error HostRuntime::Record(cuda::Stream stream, cuda::Event event) {
  const std::lock_guard<std::mutex> lock(mutex_);
  HostStream& known = Known(stream);
  HostEvent& recorded = Known(event);
  if (queues_.broken() != nullptr) return queues_.broken();
  if (known.recording != nullptr) {
    recorded.recorded_in = &known;
    recorded.record = nullptr;
    return known.recording->invalid;
  }
  ++counts_.events;
  recorded.recorded_in = nullptr;
  recorded.record = std::make_shared<EventRecord>();
  recorded.record->queue = &known.queue;
  Operation operation;
  operation.records = recorded.record;
  return Enqueue(known, std::move(operation));
}

Error HostRuntime::WaitFor(cuda::Stream stream, cuda::Event event) {
  const std::lock_guard<std::mutex> lock(mutex_);
  HostStream& known = Known(stream);
  const HostEvent& awaited = Known(event);
  if (queues_.broken() != nullptr) return queues_.broken();
  if (awaited.recorded_in != nullptr) {
    if (awaited.recorded_in == &known && known.recording != nullptr) return nullptr;  // Its work is in order anyway.
    if (awaited.recorded_in->recording != nullptr) throw RuntimeMisuse("another stream would join a recording");
    return kEventOfRecording;
  }
  if (awaited.record == nullptr) return nullptr;  // never recorded
  if (known.recording != nullptr) {
    known.recording->invalid = "dependency created on uncaptured work in another stream";
    return known.recording->invalid;
  }
  Operation operation;
  operation.after = awaited.record;
  return Enqueue(known, std::move(operation));
}

Error HostRuntime::Synchronize(cuda::Stream stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  HostStream& known = Known(stream);
  if (queues_.broken() != nullptr) return queues_.broken();
  if (const Error error = ForbidWhileRecording(); error != nullptr) return error;
  if (known.recording != nullptr) {
    known.recording->invalid = kNotWhileRecording;
    return kNotWhileRecording;
  }
  ++counts_.waits;
  queues_.RunAll(known.queue);
  CheckAllMemory();
  return queues_.broken();
}

Error HostRuntime::Synchronize(cuda::Event event) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const HostEvent& known = Known(event);
  if (queues_.broken() != nullptr) return queues_.broken();
  if (const Error error = ForbidWhileRecording(); error != nullptr) return error;
  if (known.recorded_in != nullptr) return kEventOfRecording;
  ++counts_.waits;
  if (known.record != nullptr) queues_.RunUntil(*known.record);
  CheckAllMemory();
  return queues_.broken();
}

Error HostRuntime::Milliseconds(cuda::Event begin, cuda::Event end, float* milliseconds) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const HostEvent& first = Known(begin);
  const HostEvent& last = Known(end);
  if (queues_.broken() != nullptr) return queues_.broken();
  if (!first.timed || !last.timed || first.record == nullptr || last.record == nullptr)
    return "invalid resource handle";
  if (!first.record->happened || !last.record->happened) return "device not ready";
  *milliseconds = std::chrono::duration<float, std::milli>(last.record->time - first.record->time).count();
  return nullptr;
}

Error HostRuntime::Launch(cuda::Stream stream, cuda::Graph graph) {
  const std::lock_guard<std::mutex> lock(mutex_);
  HostStream& known = Known(stream);
  const HostGraph& launched = Known(graph);
  if (queues_.broken() != nullptr) return queues_.broken();
  if (known.recording != nullptr) throw RuntimeMisuse("a graph is launched into a recording");
  ++counts_.graph_launches;
  counts_ += launched.counts;
  for (const auto& [name, launches] : launched.kernels) launches_by_kernel_[name] += launches;
  return Enqueue(known, launched.operation);
}

}  // namespace c3po::host_cuda
