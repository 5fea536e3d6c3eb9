#include "server/compute/cpu/cpu_backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "server/compute/cpu/cpu_queue.h"
#include "server/compute/cpu/row_operations.h"
#include "server/compute/cpu/thread_pool.h"
#include "server/model/config/expert_choice.h"

namespace c3po::cpu {
namespace {

void CheckRows(bool right, const char* what) {
  if (!right) throw std::invalid_argument(what);
}

struct CpuRowSum final : public RowSum {
  std::vector<double> values;  // [d]
};

}  // namespace

CpuBackend::CpuBackend(ModelConfig config, CpuWeights weights, RopeTable rope, ElementType kv, bool rounds_activations)
    : config_(std::move(config)),
      weights_(std::move(weights)),
      rope_(std::move(rope)),
      info_{ElementType::kFloat32,
            /*batch_invariant=*/true,
            /*pads=*/false,
            /*holds_logits=*/false,
            /*host_memory=*/true,     weights_.type, weights_.bytes, SelectableExperts(config_), kv, weights_.format},
      step_layers_(weights_.layers),
      step_head_(weights_.lm_head) {
  if (rounds_activations) {
    for (LayerViews& views : step_layers_) views = WithRoundedActivations(views);
    step_head_ = WithRoundedActivations(step_head_);
  }
  LimitReferenceStates(0);
}

absl::StatusOr<std::unique_ptr<DeviceQueue>> CpuBackend::NewQueue() const { return std::make_unique<CpuQueue>(); }

OwnedMatrix CpuBackend::Allocate(ElementType type, int64_t rows, int64_t columns) {
  CheckRows(type == ElementType::kFloat32, "the CPU's activations are float32");
  std::shared_ptr<void> memory = AllocateBytes(rows * columns * BytesOf(type));
  void* const data = memory.get();
  return {{data, type, rows, columns, columns}, std::move(memory)};
}

OwnedMatrix CpuBackend::AllocateHidden(int64_t rows) {
  return Allocate(ElementType::kFloat32, rows, config_.hidden_size);
}

void CpuBackend::Write(absl::Span<const float> from, Matrix to) {
  CheckRows(static_cast<int64_t>(from.size()) == to.rows * to.columns, "what is written has another size");
  for (int64_t r = 0; r < to.rows; ++r)
    std::copy_n(from.data() + r * to.columns, to.columns, FloatsOf(to) + r * to.stride);
}

void CpuBackend::Read(const Matrix& from, absl::Span<float> to) {
  CheckRows(static_cast<int64_t>(to.size()) == from.rows * from.columns, "what is read has another size");
  for (int64_t r = 0; r < from.rows; ++r) {
    std::copy_n(FloatsOf(from) + r * from.stride, from.columns, to.data() + r * from.columns);
  }
}

absl::Span<const float> CpuBackend::HostView(const Matrix& from, std::vector<float>& /*staging*/) {
  CheckRows(from.stride == from.columns, "what is viewed is not packed");
  return {FloatsOf(from), static_cast<size_t>(from.rows * from.columns)};
}

void CpuBackend::Copy(const Matrix& from, Matrix to) {
  CheckRows(from.rows == to.rows && from.columns == to.columns, "what is copied has another size");
  for (int64_t r = 0; r < from.rows; ++r) {
    std::copy_n(FloatsOf(from) + r * from.stride, from.columns, FloatsOf(to) + r * to.stride);
  }
}

void CpuBackend::AllocateKvCache(const KvCacheShape& cache) {
  const int64_t slots = cache.blocks * cache.block_positions;
  const int64_t rows = int64_t{config_.layers} * config_.kv_heads * slots;
  keys_ = values_ = nullptr;
  slots_ = 0;
  std::shared_ptr<void> keys = AllocateBytes(rows * config_.head_dim * BytesOf(info_.kv));
  values_ = AllocateBytes(rows * config_.value_dim * BytesOf(info_.kv));
  keys_ = std::move(keys);  // Last: without memory for both there is no cache.
  slots_ = slots;
  block_positions_ = cache.block_positions;
}

void CpuBackend::RunStep(const StepShape& /*shape*/, absl::FunctionRef<void()> enqueue) {
  const Arena::Scope scope(arena_);
  enqueue();
}

StepMatrices CpuBackend::PlaceStep(const StepInputs& inputs) {
  const int64_t half = config_.rope_dim / 2, rows = inputs.rows();
  step_ = inputs;
  sequences_.Assign(inputs.sequences, block_positions_);
  cos_.resize(static_cast<size_t>(rows * half));
  sin_.resize(static_cast<size_t>(rows * half));
  for (const SequenceRows& sequence : inputs.sequences) {
    for (int64_t i = 0; i < sequence.rows; ++i) {
      rope_.CopyRow(sequence.start + i, cos_.data() + (sequence.first_row + i) * half,
                    sin_.data() + (sequence.first_row + i) * half);
    }
  }
  return buffers_.Place(*this, inputs, config_.hidden_size, config_.experts, config_.vocabulary_size);
}

void CpuBackend::Embed(absl::Span<const int64_t> tokens, Matrix hidden) {
  const auto factor = static_cast<float>(config_.embedding_multiplier);
  for (size_t i = 0; i < tokens.size(); ++i) {
    float* const row = FloatsOf(hidden) + static_cast<int64_t>(i) * hidden.stride;
    CopyRow(weights_.embedding, tokens[i], row);
    for (int64_t c = 0; factor != 1 && c < hidden.columns; ++c) row[c] *= factor;
  }
}

void CpuBackend::Norm(const float* x, const float* weight, int64_t rows, float* y) const {
  RmsNormRows(x, config_.hidden_size, weight, config_.rms_norm_eps, rows, config_.hidden_size, y);
}

const float* CpuBackend::Scaled(const float* dout, int64_t count) {
  if (config_.residual_multiplier == 1) return dout;
  const auto factor = static_cast<float>(config_.residual_multiplier);
  float* const scaled = arena_.Floats(count);
  for (int64_t i = 0; i < count; ++i) scaled[i] = dout[i] * factor;
  return scaled;
}

void CpuBackend::Logits(const Matrix& hidden, Matrix logits) {
  const absl::Span<const int64_t> rows = step_.head_rows;
  const int64_t d = config_.hidden_size, count = static_cast<int64_t>(rows.size());
  const Arena::Scope scope(arena_);
  float* const picked = arena_.Floats(count * d);
  for (int64_t i = 0; i < count; ++i) std::copy_n(FloatsOf(hidden) + rows[i] * hidden.stride, d, picked + i * d);
  float* const normed = arena_.Floats(count * d);
  Norm(picked, weights_.final_norm, count, normed);
  const DotProduct product{{normed, d, count, nullptr}, step_head_, {FloatsOf(logits), logits.stride, nullptr}};
  MultiplyTransposed({&product, 1});
  if (config_.logits_divisor == 1) return;
  const auto divisor = static_cast<float>(config_.logits_divisor);
  for (int64_t i = 0; i < count; ++i) {
    float* const row = FloatsOf(logits) + i * logits.stride;
    for (int64_t v = 0; v < logits.columns; ++v) row[v] /= divisor;
  }
}

void CpuBackend::ScoreTargets(const Matrix& logits, Matrix scores) {
  const absl::Span<const int32_t> targets = step_.targets;
  const int64_t width = logits.columns;
  ParallelFor(static_cast<int64_t>(targets.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* const row = FloatsOf(logits) + r * logits.stride;
      float* const score = FloatsOf(scores) + r * scores.stride;
      float top;
      const double sum = SumOfExp(row, width, &top);
      score[0] = static_cast<float>(double{row[targets[r]]} - top - std::log(sum));
      score[1] = std::find(row, row + width, top) - row == targets[r] ? 1.0f : 0.0f;
    }
  });
}

std::shared_ptr<RowSum> CpuBackend::NewRowSum() {
  auto sum = std::make_shared<CpuRowSum>();
  sum->values.resize(static_cast<size_t>(config_.hidden_size));
  return sum;
}

void CpuBackend::AddRows(const Matrix& rows, RowSum& sum) {
  std::vector<double>& values = static_cast<CpuRowSum&>(sum).values;
  for (int64_t r = 0; r < rows.rows; ++r) {
    const float* const row = FloatsOf(rows) + r * rows.stride;
    for (size_t i = 0; i < values.size(); ++i) values[i] += row[i];
  }
}

void CpuBackend::ReadMean(const RowSum& sum, int64_t count, absl::Span<float> mean) {
  const std::vector<double>& values = static_cast<const CpuRowSum&>(sum).values;
  for (size_t i = 0; i < values.size(); ++i) mean[i] = static_cast<float>(values[i] / static_cast<double>(count));
}

}  // namespace c3po::cpu
