// One forward pass over segments of many sequences: their rows are packed into one matrix, every projection, router and
// expert runs once over all of them, and only attention looks at one sequence at a time.
//
//   tokens -> embedding ┐
//   resumed entry state ┴-> layer: norm, q k v, write cache, attend -> norm, router (override), experts -> ... ->
//   logits
//
// Segments that resume enter at their own layer; they run as a batch of their own, grouped by that layer.

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/model/causal_attention.h"
#include "server/model/cpu/row_operations.h"
#include "server/model/cpu/thread_pool.h"
#include "server/model/matrix_product.h"
#include "server/model/moe_model.h"

namespace c3po {
namespace {

// The rows of one segment within the packed matrix.
struct RowSpan {
  const Segment* segment;
  SegmentOutput* output;
  int64_t first_row;
  int64_t rows;
};

struct Batch {
  std::vector<RowSpan> spans;
  CachedRows rows;    // the spans, as attention sees them
  at::Tensor hidden;  // [R, d], the residual stream
  RopeTable rope;     // of each row's position
};

at::Tensor FromFloats(const std::vector<float>& values, at::IntArrayRef sizes, at::TensorOptions options) {
  return at::from_blob(const_cast<float*>(values.data()), sizes, at::kFloat).to(options, false, /*copy=*/true);
}

// What the overrides of all rows say about one MoE layer.
LayerRouting RoutingOfLayer(const Batch& batch, int layer, int experts, at::Device device) {
  LayerRouting routing;
  const int64_t rows = batch.hidden.size(0);
  at::Tensor weights, weights_rows, shift;
  for (const RowSpan& span : batch.spans) {
    const RoutingOverride* override_ = span.segment->routing.get();
    if (override_ == nullptr) continue;
    const auto found = std::lower_bound(override_->layers.begin(), override_->layers.end(), layer);
    if (found == override_->layers.end() || *found != layer) continue;
    const auto values = override_->values.Row(static_cast<int>(found - override_->layers.begin()));
    const int64_t begin = std::max(0, span.segment->override_start - span.segment->start);
    const int64_t end = std::min<int64_t>(span.rows, int64_t{span.segment->override_end} - span.segment->start);
    if (begin >= end) continue;
    const bool is_shift = override_->kind == RoutingOverride::Kind::kLogitShift;
    at::Tensor& target = is_shift ? shift : weights;
    if (!target.defined()) target = at::zeros({rows, experts}, at::kFloat);
    const at::Tensor row = at::from_blob(const_cast<float*>(values.data()), {1, experts}, at::kFloat);
    target.narrow(0, span.first_row + begin, end - begin).copy_(row.expand({end - begin, experts}));
    if (!is_shift) {
      if (!weights_rows.defined()) weights_rows = at::zeros({rows, 1}, at::kBool);
      weights_rows.narrow(0, span.first_row + begin, end - begin).fill_(true);
    }
  }
  if (weights.defined()) {
    routing.weights = weights.to(device);
    routing.weights_rows = weights_rows.to(device);
  }
  if (shift.defined()) routing.shift = shift.to(device);
  return routing;
}

at::Tensor AttentionBlock(const Batch& batch, int layer, const LayerWeights& weights, const ModelConfig& config,
                          const KvCache& cache) {
  const at::Tensor normed = RmsNorm(batch.hidden, weights.attention_norm, config.rms_norm_eps);
  const Projections own = ProjectAttention(normed, weights, config, batch.rope);
  const at::Tensor context = CachedAttention(own.q, own.k, own.v, batch.rows, cache.keys.select(0, layer),
                                             cache.values.select(0, layer), config);
  return Project(context, weights.output, weights.output_bias);
}

// Adds row after row, so that the sum is the same however the prompt is cut into chunks.
void SumRows(const at::Tensor& rows, std::vector<double>& sum) {
  const auto width = static_cast<size_t>(rows.size(1));
  const std::vector<float> values = ToFloats(rows);
  sum.resize(width);
  for (size_t i = 0; i < values.size(); ++i) sum[i % width] += values[i];
}

// Records what segments asked to see of the states entering an MoE layer.
void CaptureEntry(const Batch& batch, int layer) {
  for (const RowSpan& span : batch.spans) {
    const Segment& segment = *span.segment;
    if (segment.resume) continue;
    const at::Tensor rows = batch.hidden.narrow(0, span.first_row, span.rows);
    std::vector<double>& sum = span.output->hidden_sum;
    if (segment.mean_layer == layer) {
      sum = segment.hidden_sum;
      SumRows(rows, sum);
    }
    if (!segment.want_capture) continue;
    if (segment.entry_layer == layer) span.output->capture.entry_hidden = ToFloats(rows.select(0, span.rows - 1));
    if (segment.mean_layer == layer) {
      const auto count = static_cast<double>(segment.start + span.rows);
      for (const double value : sum) span.output->capture.mean_hidden.push_back(static_cast<float>(value / count));
    }
  }
}

void CapturePathway(const Batch& batch, int layer, const Mixing& mixing, const ModelShape& shape) {
  for (const RowSpan& span : batch.spans) {
    if (!span.segment->want_capture) continue;
    Pathway& pathway = span.output->capture.pathway;
    if (pathway.layers == 0) pathway = Pathway(shape.moe_layers, shape.experts);
    const std::vector<float> row = ToFloats(mixing.probabilities.select(0, span.first_row + span.rows - 1));
    std::copy(row.begin(), row.end(), pathway.Row(layer).begin());
  }
}

void ScoreTargets(const RowSpan& span, const at::Tensor& logits) {
  const std::vector<int32_t>& targets = span.segment->targets;
  if (OnCpuKernels(logits)) {
    const int64_t width = logits.size(1);
    std::vector<float>& logprobs = span.output->target_logprobs;
    logprobs.resize(targets.size());
    std::vector<int64_t> best(targets.size());
    const float* rows = logits.const_data_ptr<float>();
    cpu::ParallelFor(span.rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const float* row = rows + r * logits.stride(0);
        float top;
        const double sum = cpu::SumOfExp(row, width, &top);
        logprobs[r] = static_cast<float>(double{row[targets[r]]} - top - std::log(sum));
        best[r] = std::find(row, row + width, top) - row;
      }
    });
    span.output->targets_greedy = std::equal(targets.begin(), targets.end(), best.begin());
    return;
  }
  const at::Tensor ids =
      at::tensor(std::vector<int64_t>(targets.begin(), targets.end()), at::kLong).to(logits.device());
  const at::Tensor logprobs = at::log_softmax(logits, -1);
  span.output->target_logprobs = ToFloats(logprobs.gather(1, ids.unsqueeze(1)).squeeze(1));
  span.output->targets_greedy = logits.argmax(-1).equal(ids);
}

// Final norm and LM head, for the rows that somebody reads only.
void ReadOut(const Batch& batch, const MoeWeights& weights, const ModelConfig& config) {
  std::vector<int64_t> rows;
  for (const RowSpan& span : batch.spans) {
    if (!span.segment->targets.empty()) {
      for (int64_t r = 0; r < span.rows; ++r) rows.push_back(span.first_row + r);
    } else if (span.segment->want_logits) {
      rows.push_back(span.first_row + span.rows - 1);
    }
  }
  if (rows.empty()) return;
  const at::Tensor picked = batch.hidden.index_select(0, at::tensor(rows, at::kLong).to(batch.hidden.device()));
  const at::Tensor normed = RmsNorm(picked, weights.final_norm, config.rms_norm_eps);
  at::Tensor logits = MatMulTransposed(normed, weights.lm_head).to(at::kFloat);
  if (config.logits_divisor != 1) logits = logits / config.logits_divisor;
  // Where nobody is scored all rows are on their way to the host: a device is waited for once.
  const auto scored = [](const RowSpan& span) { return !span.segment->targets.empty(); };
  if (std::none_of(batch.spans.begin(), batch.spans.end(), scored)) logits = logits.to(at::kCPU);
  int64_t next = 0;
  for (const RowSpan& span : batch.spans) {
    if (scored(span)) {
      const at::Tensor own = logits.narrow(0, next, span.rows);
      next += span.rows;
      ScoreTargets(span, own);
      if (span.segment->want_logits) span.output->logits = ToFloats(own.select(0, span.rows - 1));
    } else if (span.segment->want_logits) {
      span.output->logits = ToFloats(logits.select(0, next++));
    }
  }
}

absl::Status CheckSegment(const Segment& segment, const ModelShape& shape, int64_t slots) {
  const int64_t end = segment.start + static_cast<int64_t>(segment.tokens.size());
  int64_t room = 0;
  bool inside = true;
  for (const KvRun& run : segment.kv) {
    inside = inside && run.slot >= 0 && run.length > 0 && run.length <= slots - run.slot;
    room += run.length;
  }
  if (!inside || segment.tokens.empty() || segment.start < 0 || end > room || end > shape.context_window) {
    return absl::InternalError(absl::StrCat("segment [", segment.start, ", ", end, ") does not fit its ", room,
                                            " slots of the cache's ", slots));
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
  if (segment.resume &&
      (segment.tokens.size() != 1 || segment.entry_layer < 0 || segment.entry_layer >= shape.moe_layers ||
       segment.entry_hidden.size() != static_cast<size_t>(shape.hidden_size))) {
    return absl::InternalError("a resumed segment has one token and its entry state");
  }
  return absl::OkStatus();
}

Batch PackRows(absl::Span<const Segment> segments, const std::vector<size_t>& members,
               std::vector<SegmentOutput>& outputs, const MoeModel& model) {
  Batch batch;
  std::vector<int64_t> tokens, positions;
  std::vector<at::Tensor> resumed;
  std::vector<cpu::SequenceRows> sequences;
  for (const size_t i : members) {
    const Segment& segment = segments[i];
    const auto rows = static_cast<int64_t>(segment.tokens.size());
    batch.spans.push_back({&segment, &outputs[i], static_cast<int64_t>(positions.size()), rows});
    sequences.push_back({static_cast<int64_t>(positions.size()), rows, segment.start, segment.kv});
    for (int64_t r = 0; r < rows; ++r) positions.push_back(segment.start + r);
    tokens.insert(tokens.end(), segment.tokens.begin(), segment.tokens.end());
    if (segment.resume) {
      resumed.push_back(FromFloats(segment.entry_hidden, {1, model.shape().hidden_size}, model.tensor_options()));
    }
  }
  const at::Device device = model.tensor_options().device();
  batch.hidden = resumed.empty() ? model.Embed(tokens) : at::cat(resumed);
  batch.rows = CachedRows::Make(std::move(sequences),
                                OnCpuKernels(batch.hidden) ? std::nullopt : std::optional<at::Device>(device));
  batch.rope = model.rope().Select(at::tensor(positions, at::kLong).to(device), batch.hidden.scalar_type());
  return batch;
}

}  // namespace

absl::StatusOr<std::vector<SegmentOutput>> MoeModel::Forward(absl::Span<const Segment> segments) {
  std::map<int, std::vector<size_t>> groups;  // by first MoE layer to run; -1: from the bottom
  for (size_t i = 0; i < segments.size(); ++i) {
    C3PO_RETURN_IF_ERROR(CheckSegment(segments[i], shape_, kv_cache_.slots));
    groups[segments[i].resume ? segments[i].entry_layer : -1].push_back(i);
  }
  std::vector<SegmentOutput> outputs(segments.size());
  try {
    const c10::InferenceMode inference;
    for (const auto& [entry_layer, members] : groups) {
      Batch batch = PackRows(segments, members, outputs, *this);
      int moe = std::max(entry_layer, 0);
      for (int l = entry_layer < 0 ? 0 : config_.moe_layers[entry_layer]; l < config_.layers; ++l) {
        const LayerWeights& layer = weights_.layers[l];
        if (layer.router.defined()) CaptureEntry(batch, moe);
        batch.hidden = AddBlock(batch.hidden, AttentionBlock(batch, l, layer, config_, kv_cache_), config_);
        const at::Tensor normed = RmsNorm(batch.hidden, layer.moe_norm, config_.rms_norm_eps);
        Mixing mixing;
        if (layer.router.defined()) {
          mixing =
              MixExperts(normed, layer, config_, RoutingOfLayer(batch, moe, config_.experts, batch.hidden.device()));
          CapturePathway(batch, moe, mixing, shape_);
          ++moe;
        }
        batch.hidden = AddBlock(batch.hidden, RunFeedForward(normed, mixing, layer, nullptr), config_);
      }
      ReadOut(batch, weights_, config_);
    }
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("forward pass: ", error.what()));
  }
  return outputs;
}

}  // namespace c3po
