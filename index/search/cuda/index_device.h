#ifndef C3PO_INDEX_SEARCH_CUDA_INDEX_DEVICE_H_
#define C3PO_INDEX_SEARCH_CUDA_INDEX_DEVICE_H_

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "index/base/cuda/runtime.h"
#include "index/base/device_failure.h"
#include "index/base/mutex.h"
#include "index/search/cuda/index_kernels.h"

namespace c3po {

class IndexDevice;

// Memory of the device or of the host (pinned), given back at the end of its life. Empty, or of at least one byte.
class IndexMemory {
 public:
  IndexMemory() = default;
  IndexMemory(IndexDevice* device, void* address, int64_t bytes, bool pinned)
      : device_(device), address_(address), bytes_(bytes), pinned_(pinned) {}
  IndexMemory(IndexMemory&& other) noexcept { Swap(other); }
  IndexMemory& operator=(IndexMemory&& other) noexcept {
    IndexMemory moved(std::move(other));
    Swap(moved);
    return *this;
  }
  ~IndexMemory();

  template <class T>
  T* as() const {
    return static_cast<T*>(address_);
  }
  int64_t bytes() const { return bytes_; }

 private:
  void Swap(IndexMemory& other) {
    std::swap(device_, other.device_);
    std::swap(address_, other.address_);
    std::swap(bytes_, other.bytes_);
    std::swap(pinned_, other.pinned_);
  }

  IndexDevice* device_ = nullptr;
  void* address_ = nullptr;
  int64_t bytes_ = 0;
  bool pinned_ = false;
};

// An event of the device, unhappened at first.
class DeviceEvent {
 public:
  DeviceEvent() = default;
  DeviceEvent(IndexDevice* device, cuda::Event event) : device_(device), event_(event) {}
  DeviceEvent(DeviceEvent&& other) noexcept { Swap(other); }
  DeviceEvent& operator=(DeviceEvent&& other) noexcept {
    DeviceEvent moved(std::move(other));
    Swap(moved);
    return *this;
  }
  ~DeviceEvent();

  cuda::Event get() const { return event_; }

 private:
  void Swap(DeviceEvent& other) {
    std::swap(device_, other.device_);
    std::swap(event_, other.event_);
  }

  IndexDevice* device_ = nullptr;
  cuda::Event event_ = nullptr;
};

// What has been counted since the device was opened.
struct IndexDeviceCounts {
  int64_t device_queries = 0;  // answered by the device
  int64_t host_queries = 0;  // of indexes on the device, answered by the host: k too large, or no memory or device left
  int64_t unproven_queries = 0;  // of the float16 scan, scanned again in float32
  int64_t refusals = 0;          // allocations beyond the budget
};

// One search under way: a stream, and buffers in pinned and in device memory that one batch goes through. A search
// writes its arguments to in(), calls SendIn, enqueues kernels, calls FetchOut, and after Wait reads out(). From SendIn
// to FetchOut it holds its index's lock, so that the stream sees one state of the index; it waits without the lock.
class SearchSlot {
 public:
  // Of at least so many bytes; what was in them is lost. ResourceExhausted: beyond the budget.
  absl::Status Reserve(int64_t in_bytes, int64_t out_bytes, int64_t work_bytes);

  std::byte* in() const { return pinned_in_.as<std::byte>(); }
  std::byte* device_in() const { return device_in_.as<std::byte>(); }
  std::byte* out() const { return pinned_out_.as<std::byte>(); }
  std::byte* device_out() const { return device_out_.as<std::byte>(); }
  std::byte* work() const { return work_.as<std::byte>(); }
  cuda::Stream stream() const { return stream_; }

  // Enqueued after what `changed` stands for. `held` stays until the search has ended: what its kernels read.
  absl::Status SendIn(int64_t bytes, cuda::Event changed, std::shared_ptr<const void> held);
  absl::Status FetchOut(int64_t bytes);
  absl::Status Wait();

 private:
  friend class IndexDevice;
  friend class IndexChange;
  explicit SearchSlot(IndexDevice* device) : device_(device) {}

  IndexDevice* const device_;
  cuda::Stream stream_ = nullptr;
  DeviceEvent done_;  // The last search has read all it reads.
  IndexMemory pinned_in_, device_in_, pinned_out_, device_out_, work_;
  std::vector<std::shared_ptr<const void>> held_;
  bool pending_ = false;  // Enqueued and not waited for.
};

// One change of an index under way: runs of words are collected in pinned memory and go to the device as few blocks,
// each with one copy and one launch. While it lives no other change of the device goes on. The caller holds its index's
// lock exclusively; searches begun before are waited for, by the stream, not by the caller. Without Finish what was not
// flushed is lost.
class IndexChange {
 public:
  explicit IndexChange(IndexDevice* device);
  IndexChange(const IndexChange&) = delete;
  IndexChange& operator=(const IndexChange&) = delete;

  // To 4-byte aligned device memory. Between two Flush no word is written twice.
  void Write(void* to, const void* words, size_t count);
  void Copy(void* to, const void* from, int64_t bytes);  // On the device, after what was written before.
  void Fill(void* to, uint8_t byte, int64_t bytes);
  void Narrow(const cuda::NarrowArgs& args);
  void Flush();

  // Flushes. `changed` happens when all is in place. Else the device has failed.
  absl::Status Finish(cuda::Event changed);

 private:
  void Check(cuda::Error error);
  void NextHalf();

  IndexDevice* const device_;
  std::unique_lock<std::mutex> lock_;
  cuda::Error error_ = nullptr;
  std::vector<cuda::WordRun> runs_;
  int64_t begin_ = 0;  // In the half in use: of the words of runs_.
  int64_t words_ = 0;  // Of runs_.
};

// A device whose memory holds indexes: its streams, its budget, and what all indexes on it share. Memory of indexes, of
// searches under way and of staging counts against the budget.
//
// Once a call of the device fails, it has failed for good (a CUDA error does not go away), and its record says so:
// every later call answers Unavailable, and so it does once whoever shares the record met an error. Indexes keep their
// vectors on the host as well and are searched there from then on. Thread-safe. Outlives what it made.
class IndexDevice {
 public:
  // No pointer is owned. `budget_bytes` > 0. `record`: of the device, where others use it as well; null: one of its
  // own. Unavailable: the device does not answer.
  static absl::StatusOr<std::unique_ptr<IndexDevice>> Open(cuda::Runtime* runtime, const cuda::IndexKernels* kernels,
                                                           int64_t budget_bytes, DeviceRecord* record = nullptr);
  ~IndexDevice();
  IndexDevice(const IndexDevice&) = delete;
  IndexDevice& operator=(const IndexDevice&) = delete;

  // ResourceExhausted: beyond the budget, or the device has no more; it names both sums.
  absl::StatusOr<IndexMemory> Allocate(int64_t bytes);
  absl::StatusOr<DeviceEvent> NewEvent();

  // Waits for one of kSlots; nothing where the device has failed.
  class Lease;
  absl::StatusOr<Lease> AcquireSlot();

  cuda::Runtime& runtime() const { return *runtime_; }
  const cuda::IndexKernels& kernels() const { return *kernels_; }
  const cuda::DeviceProperties& properties() const { return properties_; }
  int64_t budget_bytes() const { return budget_bytes_; }
  int64_t bytes_in_use() const { return bytes_in_use_.load(); }
  bool failed() const { return record_->failed(); }
  absl::Status failure() const { return record_->status(); }  // Why; OK: it has not failed.
  IndexDeviceCounts counts() const;
  std::string last_refusal() const;  // Empty: everything had room.
  void CountQueries(int64_t on_device, int64_t on_host, int64_t unproven);

  // OK, or the device has failed from now on.
  absl::Status Check(cuda::Error error);

  static constexpr int kSlots = 4;

 private:
  friend class IndexMemory;
  friend class DeviceEvent;
  friend class SearchSlot;
  friend class IndexChange;

  static constexpr int64_t kHalfBytes = int64_t{4} << 20;
  struct StagingHalf {
    IndexMemory pinned, device;
    DeviceEvent sent;  // What was in it has been written to where it belongs.
    bool in_flight = false;
  };

  IndexDevice(cuda::Runtime* runtime, const cuda::IndexKernels* kernels, int64_t budget_bytes, DeviceRecord* record)
      : runtime_(runtime),
        kernels_(kernels),
        budget_bytes_(budget_bytes),
        record_(record != nullptr ? record : &own_record_) {}
  absl::Status Start();
  absl::StatusOr<IndexMemory> AllocatePinned(int64_t bytes);
  void Release(void* address, int64_t bytes, bool pinned);
  absl::Status Refuse(const std::string& what);
  void ReturnSlot(SearchSlot* slot);

  cuda::Runtime* const runtime_;
  const cuda::IndexKernels* const kernels_;
  const int64_t budget_bytes_;
  DeviceRecord own_record_;  // Where no other one was given.
  DeviceRecord* const record_;
  cuda::DeviceProperties properties_;
  std::atomic<int64_t> bytes_in_use_ = 0;
  std::atomic<int64_t> device_queries_ = 0, host_queries_ = 0, unproven_queries_ = 0, refusals_ = 0;
  mutable std::mutex refusal_mutex_;
  std::string refusal_;

  std::vector<std::unique_ptr<SearchSlot>> slots_;  // Constant after Start.
  std::mutex slots_mutex_;
  std::condition_variable slot_free_;
  std::vector<SearchSlot*> free_slots_;

  std::mutex change_mutex_;  // Guards what follows; an IndexChange has it.
  cuda::Stream change_stream_ = nullptr;
  StagingHalf halves_[2];
  int half_ = 0;         // In use.
  int64_t half_at_ = 0;  // Its bytes in use.
};

// A slot for one search; waits for what is enqueued before it gives the slot back.
class IndexDevice::Lease {
 public:
  Lease(IndexDevice* device, SearchSlot* slot) : device_(device), slot_(slot) {}
  Lease(Lease&& other) noexcept : device_(other.device_), slot_(std::exchange(other.slot_, nullptr)) {}
  Lease& operator=(Lease&&) = delete;
  ~Lease() {
    if (slot_ != nullptr) device_->ReturnSlot(slot_);
  }
  SearchSlot* operator->() const { return slot_; }
  SearchSlot& operator*() const { return *slot_; }

 private:
  IndexDevice* device_;
  SearchSlot* slot_;
};

}  // namespace c3po

#endif  // C3PO_INDEX_SEARCH_CUDA_INDEX_DEVICE_H_
