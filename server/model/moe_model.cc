#include "server/model/moe_model.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "index/base/device_failure.h"
#include "index/base/status_macros.h"
#include "server/model/config/tensor_plan.h"
#include "server/model/forward_step.h"
#include "server/model/neighbor_loss.h"
#include "server/model/objective_memory.h"

namespace c3po {
namespace {

const char* NameOf(ElementType type) { return type == ElementType::kFloat32 ? "float32" : "bfloat16"; }

// Everything that follows from configuration and backend; name, device and digest are for Load to fill in.
ModelShape ShapeOf(const ModelConfig& config, const BackendInfo& backend) {
  ModelShape shape;
  shape.architecture = config.architecture;
  shape.dtype = NameOf(backend.weights);
  shape.kv_cache_dtype = NameOf(backend.kv);
  shape.batch_invariant = backend.batch_invariant;
  shape.layers = config.layers;
  shape.moe_layers = static_cast<int>(config.moe_layers.size());
  shape.experts = config.experts;
  shape.experts_per_token = config.experts_per_token;
  shape.experts_per_token_max = std::max(config.experts_per_token, backend.experts_per_token_max);
  shape.hidden_size = config.hidden_size;
  shape.vocabulary_size = config.vocabulary_size;
  shape.context_window = config.context_window;
  shape.parameters = CountParameters(config).total;
  shape.eos_token_ids = config.eos_token_ids;
  return shape;
}

absl::Status CheckSegment(const Segment& segment, const ModelShape& shape, const KvCacheShape& cache) {
  const int64_t end = segment.start + static_cast<int64_t>(segment.tokens.size());
  const KvBlocks& kv = segment.kv;
  const auto is_block = [&](int32_t block) { return block >= 0 && block < cache.blocks; };
  const auto in_blocks = [&](absl::Span<const int32_t> blocks) {
    return static_cast<int64_t>(blocks.size()) * cache.block_positions;
  };
  const bool inside = std::all_of(kv.beginning.begin(), kv.beginning.end(), is_block) &&
                      std::all_of(kv.blocks.begin(), kv.blocks.end(), is_block) && kv.beginning_positions >= 0 &&
                      kv.beginning_positions <= in_blocks(kv.beginning);
  const int64_t room = kv.beginning_positions + in_blocks(kv.blocks);
  if (!inside || segment.tokens.empty() || segment.start < 0 || end > room || end > shape.context_window) {
    return absl::InternalError(absl::StrCat("segment [", segment.start, ", ", end, ") does not fit its ", room,
                                            " positions of the cache's ", cache.blocks * cache.block_positions));
  }
  for (int32_t token : segment.tokens) {
    if (token < 0 || token >= shape.vocabulary_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("token id ", token, " is outside the vocabulary of ", shape.vocabulary_size));
    }
  }
  if (!segment.targets.empty() && segment.targets.size() != segment.tokens.size()) {
    return absl::InternalError("a segment needs one target per token");
  }
  if (segment.resume && (segment.tokens.size() != 1 || segment.entry_layer < 0 ||
                         segment.entry_layer >= shape.moe_layers || segment.entry == nullptr)) {
    return absl::InternalError("a resumed segment has one token and its entry state");
  }
  if (segment.mean_layer >= 0 && (segment.state_sum == nullptr || segment.mean_layer >= shape.moe_layers)) {
    return absl::InternalError("a segment whose states are summed needs a layer and a place for the sum");
  }
  if (segment.experts_per_token < 0 || segment.experts_per_token > shape.experts_per_token_max) {
    return absl::InternalError(absl::StrCat("a segment of ", segment.experts_per_token, " experts per token"));
  }
  if (segment.state_layer > shape.moe_layers) return absl::InternalError("a state of a layer that does not exist");
  return absl::OkStatus();
}

}  // namespace

MoeModel::MoeModel(ModelConfig config, ModelShape shape, std::unique_ptr<Backend> backend, int64_t neighbor_cache_bytes)
    : config_(std::move(config)),
      shape_(std::move(shape)),
      backend_(std::move(backend)),
      step_(std::make_unique<ForwardStep>(config_, *backend_)) {
  backend_->LimitReferenceStates(neighbor_cache_bytes);
}

MoeModel::~MoeModel() = default;

std::unique_ptr<MoeModel> MoeModel::OnBackend(ModelConfig config, std::unique_ptr<Backend> backend,
                                              int64_t neighbor_cache_bytes) {
  ModelShape shape = ShapeOf(config, backend->info());
  return std::unique_ptr<MoeModel>(
      new MoeModel(std::move(config), std::move(shape), std::move(backend), neighbor_cache_bytes));
}

int64_t MoeModel::head_layers() const {
  const int64_t d = config_.hidden_size, q = int64_t{config_.heads} * config_.head_dim;
  const int64_t kv = int64_t{config_.kv_heads} * (config_.head_dim + config_.value_dim);
  const int64_t attention = d * (q + kv + int64_t{config_.heads} * config_.value_dim);
  const int64_t neurons =
      int64_t{config_.experts_per_token} * config_.intermediate_size + config_.shared_intermediate_size;
  return std::max<int64_t>(1, d * config_.vocabulary_size / (attention + 3 * d * neurons));
}

absl::Status MoeModel::AllocateKvCache(const KvCacheShape& cache) {
  if (cache.blocks < 1 || cache.block_positions < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("a cache of ", cache.blocks, " blocks of ", cache.block_positions, " positions"));
  }
  try {
    cache_ = {};
    backend_->AllocateKvCache(cache);
    cache_ = cache;
    return absl::OkStatus();
  } catch (const std::exception& error) {
    return FailureOfDeviceOr(absl::ResourceExhaustedError(
        absl::StrCat("no memory for a cache of ", cache.blocks * cache.block_positions, " positions: ", error.what())));
  }
}

absl::StatusOr<std::shared_ptr<const PlacedRouting>> MoeModel::PlaceRouting(const RoutingOverride& routing) {
  try {
    return step_->Place(routing);
  } catch (const std::exception& error) {
    return FailureOfDeviceOr(absl::ResourceExhaustedError(absl::StrCat("no memory for an override: ", error.what())));
  }
}

absl::Status MoeModel::Forward(absl::Span<const Segment> segments, std::vector<SegmentOutput>& outputs) {
  for (const Segment& segment : segments) C3PO_RETURN_IF_ERROR(CheckSegment(segment, shape_, cache_));
  try {
    step_->Run(segments, outputs);
    return absl::OkStatus();
  } catch (const std::exception& error) {
    return FailureOfDeviceOr(absl::InternalError(absl::StrCat("forward pass: ", error.what())));
  }
}

int64_t MoeModel::weight_bytes() const { return backend_->info().weight_bytes; }

int64_t MoeModel::kv_cache_bytes() const { return backend_->kv_cache_bytes(); }

absl::StatusOr<std::unique_ptr<NeighborhoodObjective>> MoeModel::NewObjective(const ObjectiveSpec& spec) {
  C3PO_ASSIGN_OR_RETURN(std::unique_ptr<NeighborLoss> loss, NeighborLoss::Create(*this, spec));
  return std::unique_ptr<NeighborhoodObjective>(std::move(loss));
}

int64_t MoeModel::ObjectiveBytes(const ObjectiveSpec& spec, int prompt_positions) const {
  return ObjectiveMemory(config_, spec, prompt_positions, backend_->info());
}

std::unique_ptr<EvaluationRun> MoeModel::NewEvaluationRun(std::vector<Evaluation> evaluations) {
  return NeighborLoss::NewRun(*this, std::move(evaluations));
}

}  // namespace c3po
