#ifndef C3PO_SERVER_MODEL_MOE_MODEL_H_
#define C3PO_SERVER_MODEL_MOE_MODEL_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "server/compute/backend.h"
#include "server/model/config/model_config.h"
#include "server/model/neighbor_cache.h"
#include "server/types/model_runner.h"

namespace c3po {

struct MoeModelOptions {
  std::string folder;                        // config.json, *.safetensors
  std::string device = "cpu";                // cpu, cuda
  std::string dtype = "auto";                // auto, float32, bfloat16
  std::string arithmetic = "float32";        // of products on the CPU: auto, float32, bfloat16
  std::string kv_cache_dtype = "auto";       // of keys and values: auto, float32, bfloat16
  std::string weights = "auto";              // how the large matrices are held: auto, float32, bfloat16, int8, int4
  int64_t neighbor_cache_bytes = 256 << 20;  // Fixed states of references; the least recently used are dropped first.
  std::function<void(int done, int total)> progress;  // Per layer loaded; may be null.
};

class ForwardStep;

// A Mixture-of-Experts decoder on a backend. Layer l, for rows x of any number of sequences:
//   x += Attention(RmsNorm(x)),   h = RmsNorm(x),   x += sum_{e in top-k(w)} w_e Expert_e(h) + Shared(h),
//   w = softmax(router h)
// with w replaced or shifted in rows that carry a RoutingOverride. Dense layers have Shared(h) alone; whoever names a
// layer from outside means an MoE layer, by its number among these. Not thread-safe: one engine thread calls it;
// shape() and config() are constant after Load.
class MoeModel final : public ModelRunner {
 public:
  // NotFound, InvalidArgument, Unimplemented name the file and the field or tensor; FailedPrecondition: device missing.
  static absl::StatusOr<std::unique_ptr<MoeModel>> Load(const MoeModelOptions& options);

  // A model on weights that the backend has packed already; `config` is theirs.
  static std::unique_ptr<MoeModel> OnBackend(ModelConfig config, std::unique_ptr<Backend> backend,
                                             int64_t neighbor_cache_bytes);

  ~MoeModel() override;

  const ModelShape& shape() const override { return shape_; }
  const ModelConfig& config() const { return config_; }
  // What computes; the engine thread's alone.
  Backend& backend() const { return *backend_; }
  // As many layers cost a row about what the LM head does, by the weights that are read; at least 1.
  int64_t head_layers() const;

  // Of the weights as they lie in memory, and of all slots of the KV cache, touched or not.
  int64_t weight_bytes() const;
  int64_t kv_cache_bytes() const;

  absl::Status AllocateKvCache(const KvCacheShape& cache) override;
  absl::StatusOr<std::shared_ptr<const PlacedRouting>> PlaceRouting(const RoutingOverride& routing) override;
  absl::Status Forward(absl::Span<const Segment> segments, std::vector<SegmentOutput>& outputs) override;
  absl::StatusOr<std::unique_ptr<NeighborPreparation>> NewPreparation(const NeighborCase& neighbor,
                                                                      const MovingPart& moving) override;
  absl::StatusOr<std::vector<std::unique_ptr<NeighborPreparation>>> NewPreparations(
      absl::Span<const NeighborCase> neighbors, const MovingPart& moving) override;
  absl::StatusOr<std::unique_ptr<NeighborhoodObjective>> NewObjective(const ObjectiveSpec& spec) override;
  int64_t ObjectiveBytes(const ObjectiveSpec& spec, int prompt_positions) const override;
  std::unique_ptr<EvaluationRun> NewEvaluationRun(std::vector<Evaluation> evaluations) override;

  int64_t neighbor_cache_bytes() const override { return neighbor_cache_.bytes(); }

 private:
  MoeModel(ModelConfig config, ModelShape shape, std::unique_ptr<Backend> backend, int64_t neighbor_cache_bytes);

  ModelConfig config_;
  ModelShape shape_;
  std::unique_ptr<Backend> backend_;
  KvCacheShape cache_;
  const std::unique_ptr<ForwardStep> step_;
  NeighborCache neighbor_cache_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_MOE_MODEL_H_
