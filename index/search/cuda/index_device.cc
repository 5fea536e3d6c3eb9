// Two kinds of streams: one for changes, and one for each search slot. They are ordered by events alone, so nobody
// waits on the host except who needs a result:
//   a search waits (on the device) for the last change of its index, a change for the searches enqueued before it.
// The lock of the index, which a search shares and a change has alone, makes "before" the same for host and device.

#include "index/search/cuda/index_device.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr int64_t kAlignment = 256;
constexpr size_t kRunWordsMax = 4096;  // A block's work of a scatter.

int64_t Aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

IndexMemory::~IndexMemory() {
  if (device_ != nullptr) device_->Release(address_, bytes_, pinned_);
}

DeviceEvent::~DeviceEvent() {
  if (device_ != nullptr) static_cast<void>(device_->runtime().DeleteEvent(event_));
}

absl::StatusOr<std::unique_ptr<IndexDevice>> IndexDevice::Open(cuda::Runtime* runtime,
                                                               const cuda::IndexKernels* kernels, int64_t budget_bytes,
                                                               DeviceRecord* record) {
  if (budget_bytes <= 0) return absl::InvalidArgumentError("index device: the budget must be positive");
  std::unique_ptr<IndexDevice> device(new IndexDevice(runtime, kernels, budget_bytes, record));
  C3PO_RETURN_IF_ERROR(device->Start());
  return device;
}

absl::Status IndexDevice::Start() {
  C3PO_RETURN_IF_ERROR(Check(runtime_->Properties(&properties_)));
  C3PO_RETURN_IF_ERROR(Check(runtime_->NewStream(&change_stream_)));
  for (StagingHalf& half : halves_) {
    C3PO_ASSIGN_OR_RETURN(half.pinned, AllocatePinned(kHalfBytes));
    C3PO_ASSIGN_OR_RETURN(half.device, Allocate(kHalfBytes));
    C3PO_ASSIGN_OR_RETURN(half.sent, NewEvent());
  }
  for (int i = 0; i < kSlots; ++i) {
    std::unique_ptr<SearchSlot> slot(new SearchSlot(this));
    C3PO_RETURN_IF_ERROR(Check(runtime_->NewStream(&slot->stream_)));
    C3PO_ASSIGN_OR_RETURN(slot->done_, NewEvent());
    free_slots_.push_back(slot.get());
    slots_.push_back(std::move(slot));
  }
  return absl::OkStatus();
}

IndexDevice::~IndexDevice() {
  if (change_stream_ != nullptr) {
    static_cast<void>(runtime_->Synchronize(change_stream_));
    static_cast<void>(runtime_->DeleteStream(change_stream_));
  }
  for (const auto& slot : slots_) {
    slot->held_.clear();
    static_cast<void>(runtime_->DeleteStream(slot->stream_));
  }
}

absl::Status IndexDevice::Check(cuda::Error error) {
  if (error == nullptr) return absl::OkStatus();
  record_->Note(absl::StrCat("searching references: ", error));
  return failure();
}

IndexDeviceCounts IndexDevice::counts() const {
  return {device_queries_.load(), host_queries_.load(), unproven_queries_.load(), refusals_.load()};
}

void IndexDevice::CountQueries(int64_t on_device, int64_t on_host, int64_t unproven) {
  device_queries_ += on_device;
  host_queries_ += on_host;
  unproven_queries_ += unproven;
}

std::string IndexDevice::last_refusal() const {
  const std::lock_guard<std::mutex> lock(refusal_mutex_);
  return refusal_;
}

absl::Status IndexDevice::Refuse(const std::string& what) {
  ++refusals_;
  const std::lock_guard<std::mutex> lock(refusal_mutex_);
  refusal_ = what;
  return absl::ResourceExhaustedError(absl::StrCat("index device: ", what));
}

// What the device refuses for want of memory is no failure of it: the caller goes on without.
absl::StatusOr<IndexMemory> IndexDevice::Allocate(int64_t bytes) {
  C3PO_RETURN_IF_ERROR(failure());
  const int64_t in_use = bytes_in_use_.fetch_add(bytes);
  if (in_use + bytes > budget_bytes_) {
    bytes_in_use_ -= bytes;
    return Refuse(
        absl::StrCat(bytes, " bytes more than the ", in_use, " in use would exceed the budget of ", budget_bytes_));
  }
  void* address = nullptr;
  if (const cuda::Error error = runtime_->Allocate(bytes, &address); error != nullptr) {
    bytes_in_use_ -= bytes;
    return Refuse(absl::StrCat(bytes, " bytes beside the ", in_use, " in use: ", error));
  }
  return IndexMemory(this, address, bytes, /*pinned=*/false);
}

absl::StatusOr<IndexMemory> IndexDevice::AllocatePinned(int64_t bytes) {
  void* address = nullptr;
  if (const cuda::Error error = runtime_->AllocatePinned(bytes, &address); error != nullptr) {
    return Refuse(absl::StrCat(bytes, " bytes of pinned memory: ", error));
  }
  return IndexMemory(this, address, bytes, /*pinned=*/true);
}

void IndexDevice::Release(void* address, int64_t bytes, bool pinned) {
  if (pinned) {
    static_cast<void>(runtime_->FreePinned(address));
    return;
  }
  static_cast<void>(runtime_->Free(address));
  bytes_in_use_ -= bytes;
}

absl::StatusOr<DeviceEvent> IndexDevice::NewEvent() {
  cuda::Event event = nullptr;
  C3PO_RETURN_IF_ERROR(Check(runtime_->NewEvent(&event)));
  return DeviceEvent(this, event);
}

absl::StatusOr<IndexDevice::Lease> IndexDevice::AcquireSlot() {
  std::unique_lock<std::mutex> lock(slots_mutex_);
  slot_free_.wait(lock, [this] { return !free_slots_.empty(); });
  C3PO_RETURN_IF_ERROR(failure());
  SearchSlot* const slot = free_slots_.back();
  free_slots_.pop_back();
  return Lease(this, slot);
}

void IndexDevice::ReturnSlot(SearchSlot* slot) {
  if (slot->pending_) slot->Wait().IgnoreError();
  slot->held_.clear();
  {
    const std::lock_guard<std::mutex> lock(slots_mutex_);
    free_slots_.push_back(slot);
  }
  slot_free_.notify_one();
}

absl::Status SearchSlot::Reserve(int64_t in_bytes, int64_t out_bytes, int64_t work_bytes) {
  const auto grow = [&](IndexMemory& memory, int64_t bytes, bool pinned) -> absl::Status {
    if (memory.bytes() >= bytes) return absl::OkStatus();
    memory = IndexMemory();
    const int64_t rounded = std::max<int64_t>(Aligned(bytes + bytes / 2), 16 * 1024);
    C3PO_ASSIGN_OR_RETURN(memory, pinned ? device_->AllocatePinned(rounded) : device_->Allocate(rounded));
    return absl::OkStatus();
  };
  C3PO_RETURN_IF_ERROR(grow(pinned_in_, in_bytes, true));
  C3PO_RETURN_IF_ERROR(grow(device_in_, in_bytes, false));
  C3PO_RETURN_IF_ERROR(grow(pinned_out_, out_bytes, true));
  C3PO_RETURN_IF_ERROR(grow(device_out_, out_bytes, false));
  return grow(work_, work_bytes, false);
}

absl::Status SearchSlot::SendIn(int64_t bytes, cuda::Event changed, std::shared_ptr<const void> held) {
  held_.push_back(std::move(held));
  pending_ = true;
  cuda::Runtime& runtime = device_->runtime();
  C3PO_RETURN_IF_ERROR(device_->Check(runtime.WaitFor(stream_, changed)));
  return device_->Check(runtime.CopyToDevice(stream_, device_in(), in(), bytes));
}

absl::Status SearchSlot::FetchOut(int64_t bytes) {
  cuda::Runtime& runtime = device_->runtime();
  C3PO_RETURN_IF_ERROR(device_->Check(runtime.CopyToHost(stream_, out(), device_out(), bytes)));
  return device_->Check(runtime.Record(stream_, done_.get()));
}

absl::Status SearchSlot::Wait() {
  const absl::Status status = device_->Check(device_->runtime().Synchronize(stream_));
  pending_ = false;
  held_.clear();
  return status;
}

IndexChange::IndexChange(IndexDevice* device) : device_(device), lock_(device->change_mutex_) {
  for (const auto& slot : device_->slots_) {
    Check(device_->runtime().WaitFor(device_->change_stream_, slot->done_.get()));
  }
  begin_ = device_->half_at_;
}

void IndexChange::Check(cuda::Error error) {
  if (error_ != nullptr || error == nullptr) return;
  error_ = error;
  device_->Check(error).IgnoreError();
}

// The other half may still be read by the device.
void IndexChange::NextHalf() {
  IndexDevice::StagingHalf& full = device_->halves_[device_->half_];
  Check(device_->runtime().Record(device_->change_stream_, full.sent.get()));
  full.in_flight = true;
  device_->half_ = 1 - device_->half_;
  IndexDevice::StagingHalf& next = device_->halves_[device_->half_];
  if (next.in_flight) Check(device_->runtime().Synchronize(next.sent.get()));
  next.in_flight = false;
  device_->half_at_ = begin_ = 0;
}

void IndexChange::Write(void* to, const void* words, size_t count) {
  const auto* from = static_cast<const std::byte*>(words);
  auto* target = static_cast<uint32_t*>(to);
  while (count > 0 && error_ == nullptr) {
    const size_t part = std::min(count, kRunWordsMax);
    const int64_t needed = Aligned(4 * (words_ + static_cast<int64_t>(part))) +
                           static_cast<int64_t>((runs_.size() + 1) * sizeof(cuda::WordRun));
    if (begin_ + needed > IndexDevice::kHalfBytes) {
      Flush();
      NextHalf();
    }
    std::byte* const staged = device_->halves_[device_->half_].pinned.as<std::byte>() + begin_ + 4 * words_;
    std::memcpy(staged, from, 4 * part);
    runs_.push_back({target, static_cast<uint32_t>(words_), static_cast<uint32_t>(part)});
    words_ += static_cast<int64_t>(part);
    from += 4 * part;
    target += part;
    count -= part;
  }
}

void IndexChange::Flush() {
  if (runs_.empty() || error_ != nullptr) return;
  IndexDevice::StagingHalf& half = device_->halves_[device_->half_];
  const int64_t runs_at = Aligned(4 * words_);
  const auto runs_bytes = static_cast<int64_t>(runs_.size() * sizeof(cuda::WordRun));
  std::byte* const pinned = half.pinned.as<std::byte>() + begin_;
  std::byte* const staged = half.device.as<std::byte>() + begin_;
  std::memcpy(pinned + runs_at, runs_.data(), static_cast<size_t>(runs_bytes));
  Check(device_->runtime().CopyToDevice(device_->change_stream_, staged, pinned, runs_at + runs_bytes));
  cuda::ScatterArgs args;
  args.runs = reinterpret_cast<const cuda::WordRun*>(staged + runs_at);
  args.words = reinterpret_cast<const uint32_t*>(staged);
  args.run_count = static_cast<int>(runs_.size());
  Check(device_->kernels().scatter(args, device_->change_stream_));
  runs_.clear();
  words_ = 0;
  begin_ = device_->half_at_ = std::min(Aligned(begin_ + runs_at + runs_bytes), IndexDevice::kHalfBytes);
}

void IndexChange::Copy(void* to, const void* from, int64_t bytes) {
  Flush();
  if (bytes > 0) Check(device_->runtime().CopyOnDevice(device_->change_stream_, to, from, bytes));
}

void IndexChange::Fill(void* to, uint8_t byte, int64_t bytes) {
  Flush();
  if (bytes > 0) Check(device_->runtime().Fill(device_->change_stream_, to, byte, bytes));
}

void IndexChange::Narrow(const cuda::NarrowArgs& args) {
  Flush();
  if (args.row_count > 0) Check(device_->kernels().narrow(args, device_->change_stream_));
}

absl::Status IndexChange::Finish(cuda::Event changed) {
  Flush();
  Check(device_->runtime().Record(device_->change_stream_, changed));
  return error_ == nullptr ? absl::OkStatus() : device_->failure();
}

}  // namespace c3po
