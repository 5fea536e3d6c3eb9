#ifndef C3PO_SERVER_COMPUTE_CPU_MEMORY_H_
#define C3PO_SERVER_COMPUTE_CPU_MEMORY_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace c3po::cpu {

// What the rows of all blocks take of the process's memory, in bytes: matrices, tapes, states and caches as long as
// they live, of an arena and of a pool what is in use. Thread-safe.
class HeldMemory {
 public:
  static int64_t now() { return now_; }
  // The largest value of now() since the last Restart.
  static int64_t most() { return most_; }
  static void Restart() { most_ = now_.load(); }
  static void Add(int64_t bytes);

 private:
  static inline std::atomic<int64_t> now_{0}, most_{0};
};

// Uninitialized memory on a boundary that vectors like, which counts as held.
std::shared_ptr<void> AllocateBytes(int64_t bytes);
// Likewise, for one who counts what of it is in use. Throws std::bad_alloc, as all of them.
std::shared_ptr<void> AllocateUncounted(int64_t bytes);

// Where a block puts its intermediate rows. Not thread-safe.
class Memory {
 public:
  virtual ~Memory() = default;
  virtual void* Take(int64_t bytes) = 0;

  // Uninitialized.
  float* Floats(int64_t count) { return static_cast<float*>(Take(count * static_cast<int64_t>(sizeof(float)))); }
  int64_t* Integers(int64_t count) {
    return static_cast<int64_t*>(Take(count * static_cast<int64_t>(sizeof(int64_t))));
  }
};

// What lives as long as the object: the rows of a tape.
class KeptMemory final : public Memory {
 public:
  void* Take(int64_t bytes) override {
    blocks_.push_back(AllocateBytes(bytes));
    return blocks_.back().get();
  }

 private:
  std::vector<std::shared_ptr<void>> blocks_;
};

// Memory that one block after another uses anew. It grows to what the largest block needs and is then only handed out,
// so that a steady step allocates nothing; more than kept_max is given back when the outermost scope ends. Take throws
// std::bad_alloc; then what was taken before stays valid, and scopes end as ever.
class Arena final : public Memory {
 public:
  static constexpr int64_t kKeptMax = int64_t{96} << 20;

  explicit Arena(int64_t kept_max = kKeptMax) : kept_max_(kept_max) {}

  void* Take(int64_t bytes) override;
  int64_t bytes() const { return bytes_; }  // that it holds

  // What is taken within a scope is free when the scope ends. Scopes nest.
  class Scope {
   public:
    explicit Scope(Arena& arena) : arena_(arena), block_(arena.block_), used_(arena.used_), taken_(arena.taken_) {
      ++arena.depth_;
    }
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Arena& arena_;
    const size_t block_;
    const int64_t used_, taken_;
  };

 private:
  struct Block {
    std::shared_ptr<void> data;
    int64_t size;
  };
  void Tidy();

  const int64_t kept_max_;
  std::vector<Block> blocks_;
  size_t block_ = 0;   // that is being filled
  int64_t used_ = 0;   // of it
  int64_t taken_ = 0;  // in use
  int64_t bytes_ = 0;  // of all blocks
  int depth_ = 0;
};

}  // namespace c3po::cpu

#endif  // C3PO_SERVER_COMPUTE_CPU_MEMORY_H_
