#ifndef C3PO_SERVER_COMPUTE_CUDA_CUDA_BACKEND_H_
#define C3PO_SERVER_COMPUTE_CUDA_CUDA_BACKEND_H_

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "server/compute/backend.h"
#include "server/compute/cuda/cuda_weights.h"
#include "server/compute/cuda/device_memory.h"
#include "server/compute/cuda/host_copies.h"
#include "server/compute/cuda/kernel_table.h"
#include "server/compute/cuda/placed_step.h"
#include "server/compute/cuda/readout.h"
#include "server/compute/cuda/recorded_passes.h"
#include "server/compute/cuda/reference_states.h"
#include "server/compute/cuda/tree_attention.h"
#include "server/compute/rope_table.h"
#include "server/compute/step_buffers.h"
#include "server/compute/whole_passes.h"

namespace c3po::cuda {

class DeviceArrays;

// A GPU and the kernels that were compiled for it. Both live as long as the process.
struct CudaDevice {
  Runtime* runtime = nullptr;
  const ModelKernels* kernels = nullptr;
  // Of the queues of other work, which need no kernels of this folder. Null: the backend gives none. Thread-safe.
  std::function<absl::StatusOr<std::unique_ptr<DeviceQueue>>()> new_queue;
};

// The stream that all of a backend's work is enqueued on.
class OwnedStream {
 public:
  explicit OwnedStream(Runtime& runtime);
  ~OwnedStream();
  OwnedStream(const OwnedStream&) = delete;
  OwnedStream& operator=(const OwnedStream&) = delete;
  Stream get() const { return stream_; }

 private:
  Runtime& runtime_;
  Stream stream_ = nullptr;
};

// A float32 matrix of this backend, on the device.
inline float* FloatsOf(const Matrix& m) { return static_cast<float*>(m.data); }

// The blocks on the kernels of this folder. The residual stream is float32. Weights of bfloat16 are multiplied with
// activations rounded to bfloat16, and the cache is bfloat16; weights of float32 lie in three bfloat16 planes, and the
// cache is float32. Sums are float32. A row's result is bitwise the same whatever rows are beside it.
//
// Steps of one row a sequence are recorded per padded size and replayed: one copy in, one launch, and a wait where
// something is read. So is a pass over objectives: it runs block by block the first time, is recorded the second time,
// and from then on is one copy of values in, one launch, one copy of results out, and one wait. Throws DeviceError once
// the GPU failed.
class CudaBackend final : public Backend, public WholePasses {
 public:
  // Errors are those of cuda::PackWeights.
  CudaBackend(ModelConfig config, const ModelWeights& weights, ElementType type, const RopeTable& rope,
              const CudaDevice& device, const LoadProgress& progress = nullptr,
              WeightFormat format = WeightFormat::kElements, bool as_stored = false);
  ~CudaBackend() override;

  const BackendInfo& info() const override { return info_; }
  std::optional<OwnMemory> own_memory() const override;
  absl::StatusOr<std::unique_ptr<DeviceQueue>> NewQueue() const override;

  OwnedMatrix Allocate(ElementType type, int64_t rows, int64_t columns) override;
  OwnedMatrix AllocateHidden(int64_t rows) override;
  void Write(absl::Span<const float> from, Matrix to) override;
  void Read(const Matrix& from, absl::Span<float> to) override;
  void Copy(const Matrix& from, Matrix to) override;
  void AllocateKvCache(const KvCacheShape& cache) override;
  int64_t kv_cache_bytes() const override { return KvCacheBytes(cache_); }
  int64_t KvCacheBytes(const KvCacheShape& cache) const override;

  StepMatrices PlaceStep(const StepInputs& inputs) override;
  void RunStep(const StepShape& shape, absl::FunctionRef<void()> enqueue) override;
  void Embed(Matrix hidden) override;
  void Attention(int layer, Matrix hidden) override;
  void FeedForward(int layer, Matrix hidden, Matrix probabilities) override;
  void Logits(const Matrix& hidden, Matrix logits) override;
  void ScoreTargets(const Matrix& logits, Matrix scores) override;
  void ReadOut(const Matrix& logits, absl::Span<const ReadoutRequest* const> requests,
               absl::Span<Readout* const> readouts) override;
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

  WholePasses* whole_passes() override { return this; }
  std::shared_ptr<const TargetLoss> NewTargetLoss(const ContinuationLoss& loss) override;
  OwnedMatrix LossGradient(absl::Span<const TargetLoss* const> losses, const OwnedMatrix& logprobs) override;
  OwnedMatrix TargetLogprobsBackward(absl::Span<const TargetTokens* const> targets, const Tape& tape,
                                     const OwnedMatrix& dlogprobs) override;
  void RunPass(const Pass& pass, absl::FunctionRef<void(const Results&)> enqueue, absl::Span<float> logprobs,
               absl::Span<float> sums) override;

 private:
  struct HeadRows;
  struct AttentionTape;
  // Gradients on their way from heads to what they were projected from.
  struct HeadsBack {
    HeadSource source;  // its strides
    HeadGradient gradient;
    float* raw = nullptr;  // [R, rows of kQkv]
    HeadGradient From(int64_t row) const;
  };
  struct ObjectiveRouting;
  struct FeedForwardRows;
  struct FeedForwardTape;
  struct Remembered;
  struct RememberedTape;
  struct TargetsTape;
  struct PassRun;
  struct Sum;

  const CudaLayer& layer(int l) const { return weights_.layers[static_cast<size_t>(l)]; }
  Stream stream() const { return stream_.get(); }
  int planes() const { return weights_.type == ElementType::kFloat32 ? 3 : 1; }
  int64_t context_width() const { return int64_t{config_.heads} * config_.value_dim; }
  int64_t kv_element_bytes() const { return planes() == 1 ? 2 : 4; }

  TapeMemory NewTapeMemory();
  // Enqueues the copy; of a pass that runs as a whole only where none that ran before has the same arrays.
  std::shared_ptr<void> Place(const DeviceArrays& arrays);
  const float* PlacedValues(absl::Span<const float> values) const;
  char* PassBlock(int64_t bytes);
  Graph Record(absl::FunctionRef<void()> enqueue, const char* what);
  ActivationPlanes NewPlanes(int64_t rows, int64_t columns);  // in the arena
  void EmbedRows(const int* tokens, int64_t rows, Matrix hidden);
  void Multiply(ProductArgs args);  // with planes of the arena where it needs some
  HeadTransform TransformOf(const CudaLayer& weights) const;
  // x [R, d] -> norm -> projections, in `memory`.
  HeadSource ProjectHeads(const CudaLayer& weights, const float* x, int64_t rows, RowMemory& memory);
  void MultiplyBack(const PackedWeights& weights, const float* v, int64_t stride, float factor, int64_t rows,
                    float* out, int64_t out_stride);
  HeadsBack NewHeadsBack(const CudaLayer& weights, const HeadSource& source, int64_t rows);
  void FinishHeadsBack(const CudaLayer& weights, const HeadSource& source, const HeadsBack& back, int64_t rows,
                       float* dnormed);
  HeadRows NewHeadRows(const HeadSource& source, int64_t rows, RowMemory& memory) const;
  void Rotate(const CudaLayer& weights, const HeadRows& heads, int64_t first, int64_t count,
              const AttentionRow* positions, const KvLayer& cache, const AttentionSequence* sequences,
              const int32_t* tables);
  TreeAttentionArgs TreeArgs(const HeadRows& heads, int64_t first, const TreeTables& tree,
                             const TreePrefixBlocks& prefix, float* probabilities,
                             const ActivationPlanes& context) const;
  void AddOutput(const CudaLayer& weights, ProductArgs context, int64_t rows, const float* x, float* out);
  void KeepStates(const KvLayer& from, int layer, absl::Span<ReferenceStates* const> to);
  KvLayer CacheOf(int layer) const;
  int64_t cache_layer_bytes(const KvCacheShape& cache, int64_t width) const;
  void HeadProduct(const PackedWeights& weights, const float* x, const int* row_index, int64_t rows, float* logits,
                   int64_t stride);
  void ReadRows(ReadoutArgs args);
  std::vector<HostCopies::Part> Reduce(const Matrix& logits, int top, const std::vector<TokenOfRow>& tokens);
  int* Arrived(int64_t rows);
  ExpertChoice Choice() const;
  ExpertSelection SelectionOf(const CudaLayer& weights, int64_t rows, const int* selected) const;
  FeedForwardRows Route(const CudaLayer& weights, const RowOverride* overrides, const int* row_count, int64_t rows,
                        const float* x, float* probabilities, RowMemory& memory, const int* counts = nullptr);
  ExpertProductArgs RunGateUp(const CudaLayer& weights, const ExpertSelection& selection, const FeedForwardRows& rows);
  void MixDown(const CudaLayer& weights, const ExpertProductArgs& up, const float* x, float* out);
  ExpertProductArgs RunDownApart(const CudaLayer& weights, const ExpertProductArgs& up);
  ObjectiveRouting PlaceRouting(absl::Span<const RoutingRows> routing, int64_t rows);
  ExpertProductArgs RunDownBackward(const CudaLayer& weights, const FeedForwardRows& forward, const float* dout,
                                    int64_t rows, float* dweights, float* dshared);
  RouterBackwardArgs RouterBackwardOf(const CudaLayer& weights, const FeedForwardRows& forward,
                                      const ObjectiveRouting& routing, int64_t rows, const float* dweights);
  void SumRouting(const ObjectiveRouting& routing, const RouterBackwardArgs& back, Matrix sums);
  void NormBackward(const float* dy, const Matrix& x, const float* weight, const float* add, float* dx);

  const ModelConfig config_;
  Runtime& runtime_;
  const ModelKernels& kernels_;
  const std::function<absl::StatusOr<std::unique_ptr<DeviceQueue>>()> new_queue_;
  const int multiprocessors_;
  const OwnedStream stream_;
  const std::shared_ptr<DevicePool> memory_;
  HostCopies copies_;
  const CudaWeights weights_;
  const BackendInfo info_;
  std::shared_ptr<void> cos_, sin_;  // float32 [context_window, rope_dim / 2]
  StepArena arena_;

  const StateBlock state_block_;
  std::shared_ptr<StatePool> states_;
  std::shared_ptr<void> keys_, values_;  // of all layers, one behind the other
  KvCacheShape cache_;

  // One step of running sequences; its matrices have room for the padded rows.
  PlacedStep plan_;
  StepBuffers buffers_;
  std::array<const void*, 3> placed_at_{};  // the placed hidden, probabilities and logits
  int64_t arrived_rows_ = 0;
  std::shared_ptr<void> arrived_;  // int32 [rows], 0 between kernels

  // Recorded steps. A step that finds its places where they were recorded is replayed.
  using StepKey = std::tuple<StepForm, int, std::array<const void*, 3>, const void*, const void*, int64_t>;
  struct Recorded {
    bool seen = false;  // It ran once, so that all memory was there when it was recorded.
    Graph graph = nullptr;
  };
  static constexpr size_t kRecordedMax = 64;
  void ForgetRecorded();
  std::map<StepKey, Recorded> recorded_;

  // Passes over objectives, whose tapes and matrices lie in an arena of their own: those of the largest pass are kept.
  StepArena pass_arena_;
  std::shared_ptr<void> pass_block_;  // their values, and behind these their results
  int64_t pass_block_bytes_ = 0;
  RecordedPasses recorded_passes_;
  PassRun* pass_run_ = nullptr;  // null: none is running
};

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_CUDA_BACKEND_H_
