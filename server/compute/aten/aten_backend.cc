// Memory, the rows of a step, the embedding and the LM head. Attention, feed-forward and targets have a file each.

#include "server/compute/aten/aten_backend.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <utility>
#include <vector>

#include "server/compute/aten/aten_queue.h"
#include "server/compute/aten/matrix_tensors.h"
#include "server/compute/aten/products.h"
#include "server/compute/aten/row_operations.h"
#include "server/model/config/expert_choice.h"

namespace c3po::aten {
namespace {

at::TensorOptions ActivationsOf(const at::Tensor& embedding) {
  return embedding.is_cpu() ? embedding.options().dtype(at::kFloat) : embedding.options();
}

// Float32 rows on the host; the span outlives the tensor.
at::Tensor HostRows(const float* data, const Matrix& shape, size_t size) {
  TORCH_CHECK(static_cast<int64_t>(size) == shape.rows * shape.columns, "a copy's sizes differ");
  return at::from_blob(const_cast<float*>(data), {shape.rows, shape.columns}, at::kFloat);
}

struct AtenRowSum final : RowSum {
  at::Tensor values;  // float64 [d]
};

}  // namespace

AtenBackend::AtenBackend(ModelConfig config, MoeWeights weights, const RopeTable& rope, std::optional<ElementType> kv)
    : config_(std::move(config)),
      weights_(std::move(weights)),
      rope_(RopeTensors::Of(rope, weights_.device())),
      options_(ActivationsOf(weights_.embedding)),
      kv_options_(kv ? options_.dtype(ScalarTypeOf(*kv)) : options_),
      info_{ElementTypeOf(options_.dtype().toScalarType()),
            /*batch_invariant=*/false,
            /*pads=*/true,
            /*holds_logits=*/true,
            /*host_memory=*/options_.device().is_cpu(),
            ElementTypeOf(weights_.embedding.scalar_type()),
            BytesOf(weights_),
            SelectableExperts(config_),
            ElementTypeOf(kv_options_.dtype().toScalarType())} {
  LimitReferenceStates(0);
}

absl::StatusOr<std::unique_ptr<DeviceQueue>> AtenBackend::NewQueue() const { return AtenQueue::Create(device()); }

OwnedMatrix AtenBackend::Allocate(ElementType type, int64_t rows, int64_t columns) {
  const c10::InferenceMode inference;
  return MatrixOf(at::empty({rows, columns}, options_.dtype(ScalarTypeOf(type))));
}

OwnedMatrix AtenBackend::AllocateHidden(int64_t rows) { return Allocate(info_.activations, rows, config_.hidden_size); }

void AtenBackend::Write(absl::Span<const float> from, Matrix to) {
  const c10::InferenceMode inference;
  TensorOf(to, device()).copy_(Upload(HostRows(from.data(), to, from.size()), device()));
}

void AtenBackend::Read(const Matrix& from, absl::Span<float> to) {
  const c10::InferenceMode inference;
  HostRows(to.data(), from, to.size()).copy_(TensorOf(from, device()));
}

void AtenBackend::Copy(const Matrix& from, Matrix to) {
  const c10::InferenceMode inference;
  TORCH_CHECK(from.rows == to.rows && from.columns == to.columns, "a copy's shapes differ");
  TensorOf(to, device()).copy_(TensorOf(from, device()));
}

void AtenBackend::AllocateKvCache(const KvCacheShape& cache) {
  const c10::InferenceMode inference;
  keys_ = values_ = at::Tensor();  // Those before make room first.
  const int64_t layers = config_.layers, heads = config_.kv_heads, slots = cache.blocks * cache.block_positions;
  block_positions_ = cache.block_positions;
  at::Tensor keys = at::empty({layers, heads, slots, config_.head_dim}, kv_options_);
  values_ = at::empty({layers, heads, slots, config_.value_dim}, kv_options_);
  keys_ = std::move(keys);
}

int64_t AtenBackend::kv_cache_bytes() const {
  return keys_.defined() ? static_cast<int64_t>(keys_.nbytes() + values_.nbytes()) : 0;
}

int64_t AtenBackend::KvCacheBytes(const KvCacheShape& cache) const {
  return int64_t{config_.layers} * config_.kv_heads * cache.blocks * cache.block_positions *
         (config_.head_dim + config_.value_dim) * BytesOf(info_.kv);
}

RopeTensors AtenBackend::RopeAt(absl::Span<const int64_t> positions) const {
  return rope_.Select(Upload(positions, device()), options_.dtype().toScalarType());
}

void AtenBackend::RunStep(const StepShape& /*shape*/, absl::FunctionRef<void()> enqueue) {
  const c10::InferenceMode inference;
  enqueue();
}

StepMatrices AtenBackend::PlaceStep(const StepInputs& inputs) {
  const c10::InferenceMode inference;
  step_ = inputs;
  sequences_.Assign(inputs.sequences, block_positions_);
  rows_ = CachedRows::Make(sequences_.get(), device());
  std::vector<int64_t> positions(static_cast<size_t>(rows_.slots.size(0)));
  for (const SequenceRows& sequence : inputs.sequences) {
    for (int64_t i = 0; i < sequence.rows; ++i) {
      positions[static_cast<size_t>(sequence.first_row + i)] = sequence.start + i;
    }
  }
  rows_rope_ = RopeAt(positions);
  return buffers_.Place(*this, inputs, config_.hidden_size, config_.experts, config_.vocabulary_size);
}

void AtenBackend::Embed(absl::Span<const int64_t> tokens, Matrix hidden) {
  const c10::InferenceMode inference;
  const at::Tensor rows = weights_.embedding.index_select(0, Upload(tokens, device())).to(options_.dtype());
  TensorOf(hidden, device()).copy_(config_.embedding_multiplier == 1 ? rows : rows * config_.embedding_multiplier);
}

void AtenBackend::Logits(const Matrix& hidden, Matrix logits) {
  const c10::InferenceMode inference;
  const at::Tensor picked = TensorOf(hidden, device()).index_select(0, Upload(step_.head_rows, device()));
  const at::Tensor normed = RmsNorm(picked, weights_.final_norm, config_.rms_norm_eps);
  const at::Tensor all = MatMulTransposed(normed, weights_.lm_head).to(at::kFloat);
  TensorOf(logits, device()).copy_(config_.logits_divisor == 1 ? all : all / config_.logits_divisor);
}

void AtenBackend::ScoreTargets(const Matrix& logits, Matrix scores) {
  const c10::InferenceMode inference;
  const absl::Span<const int32_t> targets = step_.targets;
  const at::Tensor rows = TensorOf(logits.Rows(0, static_cast<int64_t>(targets.size())), device()),
                   to = TensorOf(scores, device());
  const at::Tensor ids = Upload(std::vector<int64_t>(targets.begin(), targets.end()), device());
  to.select(1, 0).copy_(at::log_softmax(rows, -1).gather(1, ids.unsqueeze(1)).squeeze(1));
  to.select(1, 1).copy_(rows.argmax(-1).eq(ids));
}

std::shared_ptr<RowSum> AtenBackend::NewRowSum() {
  const c10::InferenceMode inference;
  auto sum = std::make_shared<AtenRowSum>();
  sum->values = at::zeros({config_.hidden_size}, options_.dtype(at::kDouble));
  return sum;
}

void AtenBackend::AddRows(const Matrix& rows, RowSum& sum) {
  const c10::InferenceMode inference;
  static_cast<AtenRowSum&>(sum).values.add_(TensorOf(rows, device()).sum(0, /*keepdim=*/false, at::kDouble));
}

void AtenBackend::ReadMean(const RowSum& sum, int64_t count, absl::Span<float> mean) {
  const c10::InferenceMode inference;
  const at::Tensor& values = static_cast<const AtenRowSum&>(sum).values;
  const Matrix shape{nullptr, ElementType::kFloat32, 1, config_.hidden_size, config_.hidden_size};
  HostRows(mean.data(), shape, mean.size()).copy_((values / static_cast<double>(count)).unsqueeze(0));
}

}  // namespace c3po::aten
