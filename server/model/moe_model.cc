#include "server/model/moe_model.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <filesystem>
#include <future>
#include <initializer_list>
#include <set>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/model/cpu/thread_pool.h"
#include "server/model/device.h"
#include "server/model/generation_config.h"
#include "server/model/matrix_product.h"
#include "server/model/neighbor_loss.h"
#include "server/model/objective_memory.h"
#include "server/model/tensor_plan.h"

namespace c3po {
namespace {

// Everything that follows from configuration and weights; name, device and digest are the loader's to fill in.
ModelShape ShapeOf(const ModelConfig& config, const MoeWeights& weights) {
  ModelShape shape;
  shape.architecture = config.architecture;
  shape.dtype = weights.embedding.scalar_type() == at::kFloat ? "float32" : "bfloat16";
  shape.layers = config.layers;
  shape.moe_layers = static_cast<int>(config.moe_layers.size());
  shape.experts = config.experts;
  shape.experts_per_token = config.experts_per_token;
  shape.hidden_size = config.hidden_size;
  shape.vocabulary_size = config.vocabulary_size;
  shape.context_window = config.context_window;
  shape.parameters = weights.parameters;
  shape.eos_token_ids = config.eos_token_ids;
  return shape;
}

std::string NameOf(const std::string& folder) {
  const std::filesystem::path path = std::filesystem::path(folder).lexically_normal();
  return (path.has_filename() ? path : path.parent_path()).filename().string();
}

}  // namespace

MoeModel::MoeModel(ModelConfig config, MoeWeights weights, ModelShape shape, int64_t neighbor_cache_bytes,
                   cpu::WeightLayout layout)
    : config_(std::move(config)),
      weights_(std::move(weights)),
      shape_(std::move(shape)),
      rope_(RopeTable::Make(config_, weights_.embedding.device())),
      neighbor_cache_(neighbor_cache_bytes) {
  PackWeights(weights_, layout);
}

absl::StatusOr<std::unique_ptr<MoeModel>> MoeModel::Load(const MoeModelOptions& options) {
  C3PO_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(options.folder));
  C3PO_ASSIGN_OR_RETURN(ModelConfig config, ReadConfig(*checkpoint));
  C3PO_ASSIGN_OR_RETURN(const GenerationConfig generation,
                        GenerationConfig::Read(options.folder, config.vocabulary_size));
  C3PO_ASSIGN_OR_RETURN(const at::Device device, OpenDevice(options.device));
  C3PO_ASSIGN_OR_RETURN(const at::ScalarType stored, StoredDtype(*checkpoint));
  C3PO_ASSIGN_OR_RETURN(const at::ScalarType dtype, ChooseDtype(options.dtype, device, stored));
  C3PO_ASSIGN_OR_RETURN(const cpu::WeightLayout layout, ChooseLayout(options.arithmetic, device, dtype));
  const c10::InferenceMode inference;
  C3PO_RETURN_IF_ERROR(CheckTensors(*checkpoint, config));  // Here too, so that what does not fit is said at once:
  // the digest is taken beside the loading, so that the files are read once, and is waited for whatever comes of it.
  std::future<std::string> digest = std::async(std::launch::async, [&checkpoint] { return checkpoint->Digest(); });
  C3PO_ASSIGN_OR_RETURN(MoeWeights weights, LoadMoeWeights(*checkpoint, config, dtype, device, options.progress));
  ModelShape shape = ShapeOf(config, weights);
  shape.name = NameOf(options.folder);
  shape.eos_token_ids = EndTokens(config.eos_token_ids, generation);
  shape.device = options.device;
  shape.arithmetic = device.is_cuda() ? shape.dtype : layout == cpu::WeightLayout::kPairs ? "bfloat16" : "float32";
  shape.batch_invariant = options.device == "cpu";  // cuBLAS chooses a product's order of summation by its size.
  shape.digest = digest.get();
  try {
    return std::unique_ptr<MoeModel>(
        new MoeModel(std::move(config), std::move(weights), std::move(shape), options.neighbor_cache_bytes, layout));
  } catch (const std::exception& error) {
    return absl::ResourceExhaustedError(absl::StrCat("loading ", options.folder, ": ", error.what()));
  }
}

std::unique_ptr<MoeModel> MoeModel::FromWeights(ModelConfig config, MoeWeights weights, int64_t neighbor_cache_bytes,
                                                cpu::WeightLayout layout) {
  ModelShape shape = ShapeOf(config, weights);
  return std::unique_ptr<MoeModel>(
      new MoeModel(std::move(config), std::move(weights), std::move(shape), neighbor_cache_bytes, layout));
}

at::TensorOptions MoeModel::tensor_options() const {
  const at::TensorOptions options = weights_.embedding.options();
  return weights_.embedding.is_cpu() ? options.dtype(at::kFloat) : options;
}

at::Tensor MoeModel::Embed(const std::vector<int64_t>& tokens) const {
  const at::Tensor ids = at::tensor(tokens, at::kLong).to(weights_.embedding.device());
  const at::Tensor rows = SelectRows(weights_.embedding, ids).to(tensor_options().dtype());
  return config_.embedding_multiplier == 1 ? rows : rows * config_.embedding_multiplier;
}

int64_t MoeModel::head_layers() const {
  const int64_t d = config_.hidden_size, q = int64_t{config_.heads} * config_.head_dim;
  const int64_t kv = int64_t{config_.kv_heads} * (config_.head_dim + config_.value_dim);
  const int64_t attention = d * (q + kv + int64_t{config_.heads} * config_.value_dim);
  const int64_t neurons =
      int64_t{config_.experts_per_token} * config_.intermediate_size + config_.shared_intermediate_size;
  return std::max<int64_t>(1, d * config_.vocabulary_size / (attention + 3 * d * neurons));
}

absl::Status MoeModel::AllocateKvCache(int64_t slots) {
  if (slots < 1) return absl::InvalidArgumentError(absl::StrCat("a cache of ", slots, " positions"));
  try {
    const c10::InferenceMode inference;
    const int64_t layers = config_.layers, heads = config_.kv_heads;
    kv_cache_ = {at::empty({layers, heads, slots, config_.head_dim}, tensor_options()),
                 at::empty({layers, heads, slots, config_.value_dim}, tensor_options()), slots};
    return absl::OkStatus();
  } catch (const std::exception& error) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory for a cache of ", slots, " positions: ", error.what()));
  }
}

int64_t MoeModel::weight_bytes() const {
  std::set<const void*> counted;  // A tied LM head is the embedding.
  int64_t bytes = 0;
  const auto add = [&](std::initializer_list<at::Tensor> tensors) {
    for (const at::Tensor& tensor : tensors) {
      if (tensor.defined() && counted.insert(tensor.const_data_ptr()).second)
        bytes += static_cast<int64_t>(tensor.nbytes());
    }
  };
  add({weights_.embedding, weights_.final_norm, weights_.lm_head});
  for (const LayerWeights& layer : weights_.layers) {
    add({layer.attention_norm, layer.qkv, layer.q_norm, layer.k_norm, layer.output, layer.moe_norm, layer.router});
    add({layer.experts.gate_up, layer.experts.down, layer.shared.gate_up, layer.shared.down, layer.shared_gate});
    add({layer.qkv_bias, layer.output_bias, layer.query_latent_norm, layer.query_expand, layer.kv_latent_norm});
    add({layer.kv_expand});
  }
  return bytes;
}

int64_t MoeModel::kv_cache_bytes() const {
  if (kv_cache_.slots == 0) return 0;
  return static_cast<int64_t>(kv_cache_.keys.nbytes() + kv_cache_.values.nbytes());
}

absl::StatusOr<std::unique_ptr<NeighborhoodObjective>> MoeModel::NewObjective(const ObjectiveSpec& spec) {
  C3PO_ASSIGN_OR_RETURN(std::unique_ptr<NeighborLoss> loss, NeighborLoss::Create(*this, spec));
  return std::unique_ptr<NeighborhoodObjective>(std::move(loss));
}

int64_t MoeModel::ObjectiveBytes(const ObjectiveSpec& spec, int prompt_positions) const {
  const at::TensorOptions options = tensor_options();
  const auto element_bytes = static_cast<int64_t>(options.dtype().itemsize());
  return ObjectiveMemory(config_, spec, prompt_positions, element_bytes, !options.device().is_cpu());
}

std::unique_ptr<EvaluationRun> MoeModel::NewEvaluationRun(std::vector<Evaluation> evaluations) {
  return NeighborLoss::NewRun(*this, std::move(evaluations));
}

void MoeModel::ForEach(int64_t count, absl::FunctionRef<void(int64_t)> work) {
  cpu::ThreadPool::Shared().Run(count, work);
}

}  // namespace c3po
