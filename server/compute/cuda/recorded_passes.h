#ifndef C3PO_SERVER_COMPUTE_CUDA_RECORDED_PASSES_H_
#define C3PO_SERVER_COMPUTE_CUDA_RECORDED_PASSES_H_

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <utility>
#include <vector>

#include "index/base/cuda/runtime.h"
#include "server/compute/whole_passes.h"

namespace c3po::cuda {

// Where the arenas of a pass were when it was recorded: it can be replayed while they are there.
struct ArenaPlaces {
  int64_t scratch = 0, pass = 0;  // StepArena::generation
  friend bool operator==(const ArenaPlaces&, const ArenaPlaces&) = default;
};

// What is kept of a pass between its runs.
struct RecordedPass {
  // Arrays on the device that each run reads and none changes, by what they hold.
  struct Constant {
    std::vector<char> bytes;
    std::shared_ptr<void> device;
  };
  std::vector<Constant> constants;
  bool ran = false;  // Its constants are there, and what it takes of the arenas is known.
  int64_t scratch_bytes = 0, pass_bytes = 0;
  Graph graph = nullptr;
  ArenaPlaces places;  // of the graph
};

// The passes that ran lately. One is forgotten with the first of its objectives that ends, or when kMax others ran
// since. Engine thread only, but for the objectives, which may end on any.
class RecordedPasses {
 public:
  static constexpr size_t kMax = 32;

  explicit RecordedPasses(Runtime& runtime) : runtime_(runtime) {}
  ~RecordedPasses() { Clear(); }
  RecordedPasses(const RecordedPasses&) = delete;
  RecordedPasses& operator=(const RecordedPasses&) = delete;

  // Of these objectives in this order and of this form; a new one where there is none. Until the next call.
  RecordedPass& Of(const WholePasses::Pass& pass);
  void Clear();
  void DropGraphs();  // Recorded addresses are no longer those that hold something; the passes stay.
  void DropGraph(RecordedPass& pass);

  size_t size() const { return entries_.size(); }

 private:
  struct Entry {
    std::vector<std::weak_ptr<const void>> objectives;
    std::vector<int64_t> form;
    RecordedPass pass;
  };
  void ForgetEnded();

  Runtime& runtime_;
  std::list<Entry> entries_;  // Most recently used first.
};

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_RECORDED_PASSES_H_
