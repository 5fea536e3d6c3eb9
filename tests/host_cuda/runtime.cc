#include "tests/host_cuda/runtime.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <utility>

#include "tests/host_cuda/runtime_handles.h"
#include "tests/host_cuda/stream.h"

namespace c3po::host_cuda {

using cuda::Error;

namespace {

constexpr int64_t RuntimeCounts::*kCounts[] = {&RuntimeCounts::kernels,
                                               &RuntimeCounts::graph_kernels,
                                               &RuntimeCounts::graph_launches,
                                               &RuntimeCounts::recordings,
                                               &RuntimeCounts::copies_to_device,
                                               &RuntimeCounts::copies_to_host,
                                               &RuntimeCounts::copies_on_device,
                                               &RuntimeCounts::fills,
                                               &RuntimeCounts::bytes_to_device,
                                               &RuntimeCounts::bytes_to_host,
                                               &RuntimeCounts::bytes_on_device,
                                               &RuntimeCounts::pageable_copies,
                                               &RuntimeCounts::waits,
                                               &RuntimeCounts::device_waits,
                                               &RuntimeCounts::allocations,
                                               &RuntimeCounts::events};
static_assert(sizeof(RuntimeCounts) == sizeof(int64_t) * std::size(kCounts), "every count is in the list");

WorkQueues::Schedule Drawn(HostRuntime::Schedule schedule, Order& order) {
  using Drawn = WorkQueues::Schedule;
  constexpr Drawn kAll[] = {Drawn::kEarly, Drawn::kLate, Drawn::kMixed, Drawn::kMixed};
  if (schedule == HostRuntime::Schedule::kEarly) return Drawn::kEarly;
  if (schedule == HostRuntime::Schedule::kLate) return Drawn::kLate;
  return kAll[order.Below(static_cast<int>(std::size(kAll)))];
}

WorkQueues QueuesOf(HostRuntime::Schedule schedule) {
  Order order = NextOrder();
  const WorkQueues::Schedule drawn = Drawn(schedule, order);
  return WorkQueues(drawn, order);
}

template <class Owned, class Handle>
Owned& FindAlive(const std::vector<std::unique_ptr<Owned>>& all, Handle* handle, const char* what,
                 const char* one_of_them) {
  const auto found =
      std::find_if(all.begin(), all.end(), [&](const auto& one) { return static_cast<Handle*>(one.get()) == handle; });
  if (found == all.end()) throw RuntimeMisuse(std::string("no ") + what + " of this runtime");
  if ((*found)->deleted) throw RuntimeMisuse(std::string(one_of_them) + " after its end");
  return **found;
}

}  // namespace

RuntimeCounts& RuntimeCounts::operator+=(const RuntimeCounts& more) {
  for (const auto count : kCounts) this->*count += more.*count;
  return *this;
}

RuntimeCounts RuntimeCounts::operator-(const RuntimeCounts& before) const {
  RuntimeCounts since = *this;
  for (const auto count : kCounts) since.*count -= before.*count;
  return since;
}

HostRuntime::HostRuntime(const Options& options)
    : options_(options),
      device_memory_("device memory"),
      pinned_memory_("pinned memory"),
      queues_(QueuesOf(options.schedule)) {
  CountRuntimes(1);
}

HostRuntime::~HostRuntime() { CountRuntimes(-1); }

RuntimeCounts HostRuntime::counts() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return counts_;
}

std::map<std::string, int64_t> HostRuntime::LaunchesByKernel() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return launches_by_kernel_;
}

void HostRuntime::BreakAfter(int64_t operations, Error error) {
  const std::lock_guard<std::mutex> lock(mutex_);
  queues_.BreakAfter(operations, error);
}

std::string HostRuntime::Alive() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::string alive;
  const auto say = [&](size_t count, const char* what) {
    if (count > 0) alive += (alive.empty() ? "" : ", ") + std::to_string(count) + " " + what;
  };
  const auto alive_of = [](const auto& all) {
    return static_cast<size_t>(std::count_if(all.begin(), all.end(), [](const auto& one) { return !one->deleted; }));
  };
  say(device_memory_.size(), "allocations of device memory");
  say(pinned_memory_.size(), "allocations of pinned memory");
  say(alive_of(streams_), "streams");
  say(alive_of(events_), "events");
  say(alive_of(graphs_), "graphs");
  return alive;
}

HostStream& HostRuntime::Known(cuda::Stream stream) { return FindAlive(streams_, stream, "stream", "a stream"); }
HostEvent& HostRuntime::Known(cuda::Event event) { return FindAlive(events_, event, "event", "an event"); }
HostGraph& HostRuntime::Known(cuda::Graph graph) { return FindAlive(graphs_, graph, "graph", "a graph"); }

HostStream* HostRuntime::RecordedByThisThread() {
  for (const std::unique_ptr<HostStream>& stream : streams_) {
    if (stream->recording != nullptr && stream->recording->thread == std::this_thread::get_id()) return stream.get();
  }
  return nullptr;
}

Error HostRuntime::ForbidWhileRecording() {
  HostStream* const recorded = RecordedByThisThread();
  if (recorded == nullptr) return nullptr;
  recorded->recording->invalid = kNotWhileRecording;
  return kNotWhileRecording;
}

void HostRuntime::CheckAllMemory() const {
  device_memory_.CheckBehind();
  pinned_memory_.CheckBehind();
}

Error HostRuntime::Properties(cuda::DeviceProperties* properties) {
  *properties = {};
  std::snprintf(properties->name, sizeof(properties->name), "execution model on the host");
  properties->compute_major = 8;
  properties->multiprocessors = options_.multiprocessors;
  properties->memory_bytes = options_.memory_bytes;
  properties->l2_bytes = int64_t{40} << 20;
  properties->shared_bytes_per_block = kSharedBytesMax;
  return nullptr;
}

Error HostRuntime::MemoryInfo(int64_t* free_bytes, int64_t* total_bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (queues_.broken() != nullptr) return queues_.broken();
  *free_bytes = options_.memory_bytes - device_memory_.bytes();
  *total_bytes = options_.memory_bytes;
  return nullptr;
}

Error HostRuntime::Allocate(int64_t bytes, void** device) {
  const std::lock_guard<std::mutex> lock(mutex_);
  *device = nullptr;
  if (queues_.broken() != nullptr) return queues_.broken();
  if (const Error error = ForbidWhileRecording(); error != nullptr) return error;
  if (bytes <= 0) return "allocation of no bytes";
  if (bytes > options_.memory_bytes - device_memory_.bytes()) return "allocation: out of memory";
  *device = device_memory_.Allocate(bytes);
  ++counts_.allocations;
  return nullptr;
}

Error HostRuntime::Free(void* device) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (queues_.broken() != nullptr) return queues_.broken();
  if (const Error error = ForbidWhileRecording(); error != nullptr) return error;
  if (device == nullptr) return nullptr;
  ++counts_.device_waits;
  queues_.RunAll();
  device_memory_.Free(device);
  return queues_.broken();
}

Error HostRuntime::AllocatePinned(int64_t bytes, void** host) {
  const std::lock_guard<std::mutex> lock(mutex_);
  *host = nullptr;
  if (queues_.broken() != nullptr) return queues_.broken();
  if (const Error error = ForbidWhileRecording(); error != nullptr) return error;
  if (bytes <= 0) return "allocation of no bytes";
  *host = pinned_memory_.Allocate(bytes);
  ++counts_.allocations;
  return nullptr;
}

Error HostRuntime::FreePinned(void* host) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (queues_.broken() != nullptr) return queues_.broken();
  if (const Error error = ForbidWhileRecording(); error != nullptr) return error;
  if (host == nullptr) return nullptr;
  const ExactMemory* const memory = pinned_memory_.Find(host);
  if (memory != nullptr && queues_.WillTouch({memory->data(), static_cast<int64_t>(memory->bytes())})) {
    throw RuntimeMisuse("pinned memory is freed before a copy that was enqueued");
  }
  pinned_memory_.Free(host);
  return nullptr;
}

Error HostRuntime::NewStream(cuda::Stream* stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  *stream = nullptr;
  if (queues_.broken() != nullptr) return queues_.broken();
  streams_.push_back(std::make_unique<HostStream>(*this, queues_.New()));
  *stream = streams_.back().get();
  return nullptr;
}

// Work that is enqueued still runs, sooner or later.
Error HostRuntime::DeleteStream(cuda::Stream stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  HostStream& known = Known(stream);
  if (known.recording != nullptr) throw RuntimeMisuse("a stream is deleted while it is recorded");
  known.deleted = true;
  return queues_.broken();
}

Error HostRuntime::NewEvent(cuda::Event* event, bool timed) {
  const std::lock_guard<std::mutex> lock(mutex_);
  *event = nullptr;
  if (queues_.broken() != nullptr) return queues_.broken();
  events_.push_back(std::make_unique<HostEvent>());
  events_.back()->timed = timed;
  *event = events_.back().get();
  return nullptr;
}

Error HostRuntime::DeleteEvent(cuda::Event event) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Known(event).deleted = true;
  return queues_.broken();
}

Error HostRuntime::BeginRecording(cuda::Stream stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  HostStream& known = Known(stream);
  if (queues_.broken() != nullptr) return queues_.broken();
  if (known.recording != nullptr) return kNotWhileRecording;
  if (RecordedByThisThread() != nullptr) throw RuntimeMisuse("a thread records two streams at once");
  known.recording = std::make_unique<Recording>();
  known.recording->thread = std::this_thread::get_id();
  ++counts_.recordings;
  return nullptr;
}

Error HostRuntime::EndRecording(cuda::Stream stream, cuda::Graph* graph) {
  const std::lock_guard<std::mutex> lock(mutex_);
  *graph = nullptr;
  HostStream& known = Known(stream);
  if (known.recording == nullptr) return "the stream is not recorded";
  if (known.recording->thread != std::this_thread::get_id())
    return "attempt to terminate a thread-local capture sequence from another thread";
  const std::unique_ptr<Recording> recording = std::move(known.recording);
  if (queues_.broken() != nullptr) return queues_.broken();
  if (recording->invalid != nullptr) return recording->invalid;
  auto made = std::make_unique<HostGraph>();
  made->operation = std::move(recording->operation);
  made->counts = recording->counts;
  made->kernels = std::move(recording->kernels);
  graphs_.push_back(std::move(made));
  *graph = graphs_.back().get();
  return nullptr;
}

Error HostRuntime::DeleteGraph(cuda::Graph graph) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Known(graph).deleted = true;
  return queues_.broken();
}

}  // namespace c3po::host_cuda
