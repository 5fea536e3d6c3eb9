#ifndef C3PO_SERVER_COMPUTE_CUDA_DEVICE_MEMORY_H_
#define C3PO_SERVER_COMPUTE_CUDA_DEVICE_MEMORY_H_

#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "index/base/cuda/runtime.h"

namespace c3po::cuda {

// The GPU, or its driver, failed. Nothing that it computes from then on can be trusted.
class DeviceError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Unless the call succeeded, notes a failure of the device (index/base/device_failure.h) and throws DeviceError "device
// cuda: WHAT: ERROR".
void Check(Error error, const char* what);

// Memory of one device for the work of one stream. What comes back is handed out again without a wait: whoever gets it
// next enqueues behind the work that last used it. Sizes are rounded up to classes an eighth apart, so that a piece
// that came back fits the next request of about its size. Pieces stay with the pool until the device has no other
// memory.
//
// Thread-safe. Pieces keep the pool alive. Throws std::bad_alloc where there is no memory.
class DevicePool : public std::enable_shared_from_this<DevicePool> {
 public:
  static std::shared_ptr<DevicePool> Create(Runtime& runtime);
  ~DevicePool();

  // At least `bytes`, 256-byte aligned, of unknown content. Not while the stream is recorded, unless a piece of that
  // class has come back before.
  std::shared_ptr<void> Take(int64_t bytes);

  int64_t bytes_in_use() const;  // by classes
  int64_t bytes_held() const;    // of the device, in use or not

  static int64_t ClassOf(int64_t bytes);

 private:
  explicit DevicePool(Runtime& runtime) : runtime_(runtime) {}
  void* TakeLocked(int64_t size) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Return(void* data, int64_t size);
  void FreeUnused() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  Runtime& runtime_;
  mutable absl::Mutex mu_;
  std::map<int64_t, std::vector<void*>> unused_ ABSL_GUARDED_BY(mu_);  // by class
  int64_t in_use_ ABSL_GUARDED_BY(mu_) = 0, held_ ABSL_GUARDED_BY(mu_) = 0;
};

// Where a block puts its rows: 256-byte aligned, of unknown content. Engine thread only. Throws std::bad_alloc.
class RowMemory {
 public:
  virtual ~RowMemory() = default;
  virtual void* Take(int64_t bytes) = 0;

  float* Floats(int64_t count) { return static_cast<float*>(Take(count * 4)); }
  int* Integers(int64_t count) { return static_cast<int*>(Take(count * 4)); }
  uint16_t* Halves(int64_t count) { return static_cast<uint16_t*>(Take(count * 2)); }
};

// One piece of memory that each step uses anew, at the same addresses if its blocks are the same, so that recorded work
// finds its rows. It grows to what the largest step needs.
class StepArena final : public RowMemory {
 public:
  explicit StepArena(std::shared_ptr<DevicePool> memory) : memory_(std::move(memory)) {}

  // Free again at the end of the scope that it was taken in.
  void* Take(int64_t bytes) override;

  // Rises when the memory moved: addresses handed out before are no longer those that are handed out.
  int64_t generation() const { return generation_; }
  // What it has room for without taking more.
  int64_t size() const { return size_; }
  // Most that was used at a time since the outermost scope began, or in the last one.
  int64_t peak() const { return peak_; }

  // Scopes nest.
  class Scope {
   public:
    explicit Scope(StepArena& arena) : arena_(arena), used_(arena.used_) {
      if (arena.depth_++ == 0) arena.peak_ = arena.used_;
    }
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    StepArena& arena_;
    const int64_t used_;
  };

 private:
  const std::shared_ptr<DevicePool> memory_;
  std::shared_ptr<void> data_;
  int64_t size_ = 0;
  int64_t used_ = 0;                           // may be beyond size_: what did not fit lies in beside_
  int64_t most_ = 0;                           // used at a time, since the arena last grew
  int64_t peak_ = 0;
  std::vector<std::shared_ptr<void>> beside_;  // until the outermost scope ends, and the arena grows
  int depth_ = 0;
  int64_t generation_ = 0;
};

// What lives as long as the object, or, of a pass that runs as a whole, as long as that: the rows of a tape.
class TapeMemory final : public RowMemory {
 public:
  // `pass`: where a pass has its rows; null: none is running.
  TapeMemory(std::shared_ptr<DevicePool> memory, StepArena* pass) : memory_(std::move(memory)), pass_(pass) {}
  void* Take(int64_t bytes) override {
    if (pass_ != nullptr) return pass_->Take(bytes);
    pieces_.push_back(memory_->Take(bytes));
    return pieces_.back().get();
  }

 private:
  std::shared_ptr<DevicePool> memory_;
  StepArena* pass_;
  std::vector<std::shared_ptr<void>> pieces_;
};

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_DEVICE_MEMORY_H_
