#ifndef C3PO_SERVER_COMPUTE_CUDA_PLACED_STEP_H_
#define C3PO_SERVER_COMPUTE_CUDA_PLACED_STEP_H_

#include <compare>
#include <cstdint>
#include <memory>
#include <vector>

#include "server/compute/cuda/attention.h"
#include "server/compute/cuda/device_memory.h"
#include "server/compute/cuda/host_copies.h"
#include "server/compute/cuda/router.h"
#include "server/compute/step_inputs.h"
#include "server/model/config/model_config.h"
#include "server/types/kv_blocks.h"

namespace c3po::cuda {

// The rows that a step is padded to, so that few shapes are recorded: the next of 1, 2, 4, 8, 16, 24, 32, 48, 64.
// Larger ones are not padded.
inline constexpr int kRecordedRowsMax = 64;
int64_t PaddedRows(int64_t rows);

// What decides which work a step enqueues, and where: steps that are equal in all of it can share what was recorded.
struct StepForm {
  bool decode = false;  // One row a sequence: attention appends and reads in one kernel. No other step is recorded.
  int64_t rows = 0;     // padded
  int64_t sequences = 0;
  int64_t tiles = 0;       // of rows that share keys; decode: 0
  int64_t splits_max = 0;  // of the keys of a row, rounded up to a power of two
  int64_t head_rows = 0;   // padded
  int64_t targets = 0;
  bool tokens = false;  // Rows enter from the embedding.
  bool overrides = false;
  bool counts = false;

  friend auto operator<=>(const StepForm&, const StepForm&) = default;
};

// Where a placed step's inputs lie on the device. All of `form`'s sizes; row i of R is row i of the step's matrix, the
// padding behind them computes nothing: it has no sequence, no token (-1), no length and no head row (-1).
struct StepPlaces {
  const int* row_count = nullptr;  // R
  const int* tokens = nullptr;
  const AttentionRow* rows = nullptr;
  const int* lengths = nullptr;  // keys that a row attends to
  const AttentionSequence* sequences = nullptr;
  const AttentionTile* tiles = nullptr;
  const RowOverride* overrides = nullptr;  // [MoE layers, rows]
  const int* counts = nullptr;             // experts of each row; null: the model's own number
  const int* head_rows = nullptr;
  const int* targets = nullptr;
  const int* tables = nullptr;
};

// Puts what a step reads of the host where the kernels read it: one block of pinned memory, one copy. Equal forms lie
// at equal places, until a step needs more room. Engine thread only.
class PlacedStep {
 public:
  PlacedStep(const ModelConfig& config, std::shared_ptr<DevicePool> memory);

  // Throws std::invalid_argument where a sequence has no blocks for its rows.
  void Place(const StepInputs& inputs, const KvCacheShape& cache, HostCopies& copies);

  const StepForm& form() const { return form_; }
  const StepPlaces& places() const { return places_; }
  int64_t rows() const { return rows_; }  // without padding

 private:
  void Fill(const StepInputs& inputs, const KvCacheShape& cache, char* host);
  void FillOverrides(const StepInputs& inputs, RowOverride* overrides);

  const ModelConfig& config_;
  const std::shared_ptr<DevicePool> memory_;
  std::shared_ptr<void> data_;
  int64_t room_ = 0;
  StepForm form_;
  StepPlaces places_;
  int64_t rows_ = 0;
  int64_t table_entries_ = 0;
  std::vector<PlacedRoutingRows> routing_;
};

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_PLACED_STEP_H_
