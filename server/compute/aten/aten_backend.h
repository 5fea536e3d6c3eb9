#ifndef C3PO_SERVER_COMPUTE_ATEN_ATEN_BACKEND_H_
#define C3PO_SERVER_COMPUTE_ATEN_ATEN_BACKEND_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "server/compute/aten/aten_weights.h"
#include "server/compute/aten/causal_attention.h"
#include "server/compute/aten/reference_states.h"
#include "server/compute/aten/rope_tensors.h"
#include "server/compute/backend.h"
#include "server/compute/kv_runs.h"
#include "server/compute/step_buffers.h"
#include "server/model/config/model_config.h"

namespace c3po::aten {

// The blocks on libtorch's operators, on the weights' device. On a GPU activations have the weights' dtype; they are
// float32 on the CPU, where the backend is the oracle of others. A matrix is a tensor's memory; what a call returns is
// in the queue of the calling thread's current stream. The engine thread's is the default one, which is no AtenQueue's.
// Errors are c10::Error.
//
// Besides Read, a GPU is waited for by a MoE block of float32, or of sizes that the grouped product does not take, and
// by RunRemembered while it has not seen every expert selected.
class AtenBackend : public Backend {
 public:
  // `weights`, of this configuration, are shared, not copied. Matrices of one dtype; others see PackWeights. Keys and
  // values are kept in `kv`; without it in the activations' type.
  AtenBackend(ModelConfig config, MoeWeights weights, const RopeTable& rope,
              std::optional<ElementType> kv = std::nullopt);

  const BackendInfo& info() const override { return info_; }
  absl::StatusOr<std::unique_ptr<DeviceQueue>> NewQueue() const override;

  OwnedMatrix Allocate(ElementType type, int64_t rows, int64_t columns) override;
  OwnedMatrix AllocateHidden(int64_t rows) override;
  void Write(absl::Span<const float> from, Matrix to) override;
  void Read(const Matrix& from, absl::Span<float> to) override;
  void Copy(const Matrix& from, Matrix to) override;
  void AllocateKvCache(const KvCacheShape& cache) override;
  int64_t kv_cache_bytes() const override;
  int64_t KvCacheBytes(const KvCacheShape& cache) const override;

  StepMatrices PlaceStep(const StepInputs& inputs) override;
  void RunStep(const StepShape& shape, absl::FunctionRef<void()> enqueue) override;
  void Embed(Matrix hidden) override { Embed(step_.tokens, hidden); }
  void Attention(int layer, Matrix hidden) override;
  void FeedForward(int layer, Matrix hidden, Matrix probabilities) override;
  void Logits(const Matrix& hidden, Matrix logits) override;
  void ScoreTargets(const Matrix& logits, Matrix scores) override;
  std::shared_ptr<RowSum> NewRowSum() override;
  void AddRows(const Matrix& rows, RowSum& sum) override;
  void ReadMean(const RowSum& sum, int64_t count, absl::Span<float> mean) override;

  void LimitReferenceStates(int64_t bytes) override;
  int64_t reference_bytes_in_use() const override;
  std::shared_ptr<ReferenceStates> NewReferenceStates(int first_layer, int64_t positions, int64_t tree_rows,
                                                      absl::FunctionRef<bool(int64_t bytes)> drop) override;
  void StoreTree(const Matrix& hidden, ReferenceStates& states) override;
  void LoadTree(const ReferenceStates& states, Matrix hidden) override;
  void Embed(absl::Span<const int64_t> tokens, Matrix hidden) override;
  std::unique_ptr<PreparationRows> NewPreparationRows(absl::Span<const TreeShape> trees) override;
  void PreparationAttention(int layer, const PreparationRows& rows, absl::Span<ReferenceStates* const> states,
                            bool states_only, Matrix hidden) override;
  void PreparationFeedForward(int layer, Matrix hidden) override;

  std::unique_ptr<PackedTrees> PackTrees(absl::Span<const TreeCase> cases) override;
  OwnedMatrix TreeAttention(int layer, absl::Span<const PackedTrees* const> trees, const OwnedMatrix& hidden,
                            std::unique_ptr<Tape>* tape) override;
  OwnedMatrix TreeAttentionBackward(int layer, absl::Span<const PackedTrees* const> trees, const Tape& tape,
                                    const OwnedMatrix& dout) override;
  OwnedMatrix FeedForward(int layer, absl::Span<const RoutingRows> routing, const OwnedMatrix& hidden,
                          std::unique_ptr<Tape>* tape) override;
  OwnedMatrix FeedForwardBackward(int layer, absl::Span<const RoutingRows> routing, const Tape& tape,
                                  const OwnedMatrix& dout, Matrix sums) override;

  std::unique_ptr<RememberedExperts> Remember(int layer, const OwnedMatrix& hidden, int64_t bytes_max) override;
  OwnedMatrix RunRemembered(RememberedExperts& experts, absl::Span<const RoutingRows> routing,
                            std::unique_ptr<Tape>* tape) override;
  void RememberedBackward(const RememberedExperts& experts, absl::Span<const RoutingRows> routing, const Tape& tape,
                          const OwnedMatrix& dout, Matrix sums) override;

  std::shared_ptr<const TargetTokens> NewTargets(int64_t row_count, absl::Span<const int64_t> rows,
                                                 absl::Span<const int64_t> tokens, bool targets_only) override;
  OwnedMatrix TargetLogprobs(absl::Span<const TargetTokens* const> targets, const OwnedMatrix& hidden,
                             std::unique_ptr<Tape>* tape) override;
  OwnedMatrix TargetLogprobsBackward(absl::Span<const TargetTokens* const> targets, const Tape& tape,
                                     absl::Span<const float> dlogprobs) override;

 private:
  at::Device device() const { return options_.device(); }
  const LayerWeights& layer(int l) const { return weights_.layers[static_cast<size_t>(l)]; }
  void FeedForwardInPlace(int layer, absl::Span<const PlacedRoutingRows> routing, absl::Span<const CountedRows> counts,
                          Matrix hidden, Matrix probabilities);
  // Of rows at these positions.
  RopeTensors RopeAt(absl::Span<const int64_t> positions) const;

  const ModelConfig config_;
  const MoeWeights weights_;
  const RopeTensors rope_;
  const at::TensorOptions options_;     // of activations
  const at::TensorOptions kv_options_;  // of keys and values that are kept
  const BackendInfo info_;

  at::Tensor keys_, values_;  // [layers, kv_heads, slots, head_dim], likewise of value_dim; undefined before they are
                              // allocated
  std::shared_ptr<StatePool> states_;
  int block_positions_ = 0;
  StepBuffers buffers_;
  StepInputs step_;            // that is placed
  PlacedSequences sequences_;  // of the step
  CachedRows rows_;            // likewise
  RopeTensors rows_rope_;      // likewise
};

}  // namespace c3po::aten

#endif  // C3PO_SERVER_COMPUTE_ATEN_ATEN_BACKEND_H_
