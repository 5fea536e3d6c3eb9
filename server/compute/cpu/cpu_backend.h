#ifndef C3PO_SERVER_COMPUTE_CPU_CPU_BACKEND_H_
#define C3PO_SERVER_COMPUTE_CPU_CPU_BACKEND_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "server/compute/backend.h"
#include "server/compute/cpu/attention.h"
#include "server/compute/cpu/cpu_weights.h"
#include "server/compute/cpu/expert_products.h"
#include "server/compute/cpu/expert_selection.h"
#include "server/compute/cpu/layer_views.h"
#include "server/compute/cpu/memory.h"
#include "server/compute/cpu/projections.h"
#include "server/compute/cpu/reference_states.h"
#include "server/compute/kv_runs.h"
#include "server/compute/rope_table.h"
#include "server/compute/step_buffers.h"

namespace c3po::cpu {

// A matrix of this backend: all are float32 in the process's own memory.
inline float* FloatsOf(const Matrix& m) { return static_cast<float*>(m.data); }

// The blocks on the kernels of this folder, in float32 activations, on ThreadPool::Shared(). Work is done when a call
// returns. A row's result is bitwise the same whatever rows are beside it.
class CpuBackend final : public Backend {
 public:
  // `weights`, of this configuration, are shared, not copied. Keys and values, of the cache and of references, are kept
  // in `kv`. `rounds_activations`: steps of running sequences round them to integers where weights are quantized: to 16
  // bits beside weights of 8 bits, to 8 bits beside those of 4 (quantized_products.h). What is optimized never does:
  // references' states, objectives and their gradients are those of the widened weights, in float32.
  CpuBackend(ModelConfig config, CpuWeights weights, RopeTable rope, ElementType kv = ElementType::kFloat32,
             bool rounds_activations = false);

  const BackendInfo& info() const override { return info_; }
  absl::StatusOr<std::unique_ptr<DeviceQueue>> NewQueue() const override;

  OwnedMatrix Allocate(ElementType type, int64_t rows, int64_t columns) override;
  OwnedMatrix AllocateHidden(int64_t rows) override;
  void Write(absl::Span<const float> from, Matrix to) override;
  void Read(const Matrix& from, absl::Span<float> to) override;
  absl::Span<const float> HostView(const Matrix& from, std::vector<float>& staging) override;
  void Copy(const Matrix& from, Matrix to) override;
  void AllocateKvCache(const KvCacheShape& cache) override;
  int64_t kv_cache_bytes() const override { return slots_ * position_bytes(); }
  int64_t KvCacheBytes(const KvCacheShape& cache) const override {
    return cache.blocks * cache.block_positions * position_bytes();
  }

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
  struct FeedForwardRows;
  struct FeedForwardTape;
  struct Remembered;
  struct RememberedTape;

  const LayerViews& layer(int l) const { return weights_.layers[static_cast<size_t>(l)]; }
  // As steps of running sequences multiply with it.
  const LayerViews& step_layer(int l) const { return step_layers_[static_cast<size_t>(l)]; }
  HeadShape heads() const;
  // Of the keys and values of a position.
  int64_t position_bytes() const {
    return int64_t{config_.layers} * config_.kv_heads * (config_.head_dim + config_.value_dim) * BytesOf(info_.kv);
  }
  KvSlots CacheOf(int layer) const;
  int64_t context_width() const { return int64_t{config_.heads} * config_.value_dim; }
  // RmsNorm of packed rows [R, d].
  void Norm(const float* x, const float* weight, int64_t rows, float* y) const;
  // out = x + m (context W_o + bias).
  void AddOutput(const LayerViews& views, const float* x, const float* context, int64_t rows, float* out);
  // dout times m; dout itself where m is 1.
  const float* Scaled(const float* dout, int64_t count);

  // Of x [R, d], out may be x. Normed rows, mixing weights and tapes lie in `memory`.
  FeedForwardRows RunFeedForward(const LayerViews& views, absl::Span<const RoutingRows> routing, const float* x,
                                 int64_t rows, Memory& memory, float* out, absl::Span<const CountedRows> counts = {});
  void RunShared(const LayerViews& views, const float* normed, int64_t rows, Memory& memory, FeedForwardRows& result,
                 float* out);
  void SharedBackward(const LayerViews& views, const FeedForwardRows& forward, const float* dout, int64_t rows,
                      float* dnormed);
  void MixRemembered(Remembered& experts, const MixingRows& mixing, float* out);

  const ModelConfig config_;
  const CpuWeights weights_;
  const RopeTable rope_;
  const BackendInfo info_;
  std::vector<LayerViews> step_layers_;
  WeightView step_head_;
  Arena arena_;

  std::shared_ptr<void> keys_, values_;  // [layers, kv_heads, slots, head_dim] of info_.kv, likewise of value_dim
  int64_t slots_ = 0;
  std::shared_ptr<StatePool> states_;
  int block_positions_ = 0;
  StepBuffers buffers_;
  StepInputs step_;                           // that is placed
  PlacedSequences sequences_;                 // of the step
  std::vector<PlacedRoutingRows> overrides_;  // of the layer that runs
  std::vector<RoutingRows> routing_;          // likewise
  std::vector<float> cos_, sin_;              // of the step's rows
};

}  // namespace c3po::cpu

#endif  // C3PO_SERVER_COMPUTE_CPU_CPU_BACKEND_H_
