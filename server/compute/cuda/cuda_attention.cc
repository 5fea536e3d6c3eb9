// The attention block of running sequences, and the projections of all attention, there and back.

#include <algorithm>
#include <stdexcept>

#include "server/compute/cuda/cuda_backend.h"

namespace c3po::cuda {
namespace {

constexpr float kLatentNormEps = 1e-6f;  // DeepSeek-V2's own, whatever rms_norm_eps says.

}  // namespace

HeadTransform CudaBackend::TransformOf(const CudaLayer& weights) const {
  HeadTransform transform;
  transform.heads = config_.heads;
  transform.kv_heads = config_.kv_heads;
  transform.head_dim = config_.head_dim;
  transform.value_dim = config_.value_dim;
  transform.rope_dim = config_.rope_dim;
  switch (config_.qk_norm) {
    case ModelConfig::QkNorm::kNone:
      transform.norm = HeadNorm::kNone;
      break;
    case ModelConfig::QkNorm::kWhole:
      transform.norm = HeadNorm::kWhole;
      break;
    case ModelConfig::QkNorm::kPerHead:
      transform.norm = HeadNorm::kPerHead;
      break;
  }
  transform.eps = static_cast<float>(config_.rms_norm_eps);
  if (config_.clip_qkv) transform.clip = static_cast<float>(*config_.clip_qkv);
  transform.q_norm = weights.q_norm;
  transform.k_norm = weights.k_norm;
  transform.cos = static_cast<const float*>(cos_.get());
  transform.sin = static_cast<const float*>(sin_.get());
  return transform;
}

HeadSource CudaBackend::ProjectHeads(const CudaLayer& weights, const float* x, int64_t rows, RowMemory& memory) {
  const int64_t width = weights.qkv.rows;
  float* const raw = memory.Floats(rows * width);
  ProductArgs product;
  product.weights = weights.qkv;
  product.rows = static_cast<int>(rows);
  product.source.kind = RowSource::kNormed;
  product.source.x = x;
  product.source.stride = config_.hidden_size;
  product.source.norm = weights.attention_norm;
  product.source.eps = static_cast<float>(config_.rms_norm_eps);
  product.bias = weights.qkv_bias;
  product.out = raw;
  product.out_stride = width;
  Multiply(product);

  HeadSource source;
  source.q = raw;
  source.q_stride = width;
  if (!config_.latent) {
    source.k = raw + int64_t{config_.heads} * config_.head_dim;
    source.v = source.k + int64_t{config_.kv_heads} * config_.head_dim;
    source.k_stride = source.v_stride = width;
    source.k_head_stride = config_.head_dim;
    source.v_head_stride = config_.value_dim;
    return source;
  }
  // A latent, a part of the raw rows, is normed and expanded.
  const auto expand = [&](const float* latent, const float* norm, const PackedWeights& expansion) {
    float* const expanded = memory.Floats(rows * expansion.rows);
    ProductArgs args;
    args.weights = expansion;
    args.rows = static_cast<int>(rows);
    args.source.kind = RowSource::kNormed;
    args.source.x = latent;
    args.source.stride = width;
    args.source.norm = norm;
    args.source.eps = kLatentNormEps;
    args.out = expanded;
    args.out_stride = expansion.rows;
    Multiply(args);
    return expanded;
  };
  const int plain = config_.latent->plain_dim, both = plain + config_.value_dim;
  if (config_.latent->query_rank > 0) {
    source.q = expand(raw, weights.query_latent_norm, weights.query_expand);
    source.q_stride = weights.query_expand.rows;
  }
  source.shared_key = raw + width - config_.rope_dim;
  source.shared_stride = width;
  source.k = expand(source.shared_key - config_.latent->kv_rank, weights.kv_latent_norm, weights.kv_expand);
  source.v = source.k + plain;
  source.k_stride = source.v_stride = weights.kv_expand.rows;
  source.k_head_stride = source.v_head_stride = both;
  return source;
}

// out = x + m (context W_o + bias), of packed rows; `context` has the source of the rows alone.
void CudaBackend::AddOutput(const CudaLayer& weights, ProductArgs context, int64_t rows, const float* x, float* out) {
  context.weights = weights.output;
  context.rows = static_cast<int>(rows);
  context.bias = weights.output_bias;
  context.residual = x;
  context.residual_stride = context.out_stride = config_.hidden_size;
  context.factor = static_cast<float>(config_.residual_multiplier);
  context.out = out;
  Multiply(context);
}

// y = factor v W, packed rows.
void CudaBackend::MultiplyBack(const PackedWeights& weights, const float* v, int64_t stride, float factor, int64_t rows,
                               float* out, int64_t out_stride) {
  ProductArgs args;
  args.weights = weights;
  args.transposed = true;
  args.rows = static_cast<int>(rows);
  args.source.kind = RowSource::kFloats;
  args.source.x = v;
  args.source.stride = stride;
  args.source.scale = factor;
  args.out = out;
  args.out_stride = out_stride;
  Multiply(args);
}

// Room for the gradients of what ProjectHeads gave.
CudaBackend::HeadsBack CudaBackend::NewHeadsBack(const CudaLayer& weights, const HeadSource& source, int64_t rows) {
  const int64_t width = weights.qkv.rows;
  HeadsBack back;
  back.source = source;
  back.raw = arena_.Floats(rows * width);
  back.gradient.q = back.raw;
  if (!config_.latent) {
    back.gradient.k = back.raw + int64_t{config_.heads} * config_.head_dim;
    back.gradient.v = back.gradient.k + int64_t{config_.kv_heads} * config_.head_dim;
    return back;
  }
  if (config_.latent->query_rank > 0) back.gradient.q = arena_.Floats(rows * weights.query_expand.rows);
  back.gradient.k = arena_.Floats(rows * weights.kv_expand.rows);
  back.gradient.v = back.gradient.k + config_.latent->plain_dim;
  back.gradient.shared_key = back.raw + width - config_.rope_dim;
  return back;
}

HeadGradient CudaBackend::HeadsBack::From(int64_t row) const {
  HeadGradient part = gradient;
  part.q += row * source.q_stride;
  part.k += row * source.k_stride;
  part.v += row * source.v_stride;
  if (part.shared_key != nullptr) part.shared_key += row * source.shared_stride;
  return part;
}

// From the gradients of the heads to that of the normed rows.
void CudaBackend::FinishHeadsBack(const CudaLayer& weights, const HeadSource& source, const HeadsBack& back,
                                  int64_t rows, float* dnormed) {
  const int64_t width = weights.qkv.rows;
  // Through an expansion and its norm, into the part of the raw rows that the latent is.
  const auto shrink = [&](const PackedWeights& expansion, const float* dexpanded, const float* latent,
                          const float* norm, float* draw) {
    float* const dlatent = arena_.Floats(rows * expansion.columns);
    MultiplyBack(expansion, dexpanded, expansion.rows, 1, rows, dlatent, expansion.columns);
    NormBackwardArgs args;
    args.rows = static_cast<int32_t>(rows);
    args.size = expansion.columns;
    args.dy = dlatent;
    args.dy_stride = expansion.columns;
    args.x = latent;
    args.weight = norm;
    args.eps = kLatentNormEps;
    args.dx = draw;
    args.x_stride = args.dx_stride = width;
    Check(kernels_.norm_backward(args, stream()), "going back through a latent's norm");
  };
  if (config_.latent) {
    const int64_t key = width - config_.rope_dim, value = key - config_.latent->kv_rank;
    const float* const raw = source.shared_key - key;
    shrink(weights.kv_expand, back.gradient.k, raw + value, weights.kv_latent_norm, back.raw + value);
    if (config_.latent->query_rank > 0) {
      shrink(weights.query_expand, back.gradient.q, raw, weights.query_latent_norm, back.raw);
    }
  }
  MultiplyBack(weights.qkv, back.raw, width, 1, rows, dnormed, config_.hidden_size);
}

void CudaBackend::Attention(int l, Matrix hidden) {
  const CudaLayer& weights = layer(l);
  const StepForm& form = plan_.form();
  const StepPlaces& places = plan_.places();
  const int64_t rows = form.rows, heads = config_.heads;
  if (hidden.rows != plan_.rows()) throw std::invalid_argument("other rows were placed");
  if (rows == 0) return;
  const StepArena::Scope scope(arena_);
  AttentionArgs attention;
  attention.transform = TransformOf(weights);
  attention.scale = static_cast<float>(config_.attention_scale);
  attention.rows = places.rows;
  attention.sequences = places.sequences;
  attention.tables = places.tables;
  attention.cache = CacheOf(l);
  attention.planes = planes();
  attention.source = ProjectHeads(weights, FloatsOf(hidden), rows, arena_);
  if (form.decode) {
    attention.tile_count = static_cast<int32_t>(rows);
  } else {
    RotateArgs rotate;
    rotate.transform = attention.transform;
    rotate.source = attention.source;
    rotate.rows = places.rows;
    rotate.row_count = static_cast<int32_t>(rows);
    rotate.planes = planes();
    rotate.q = arena_.Floats(rows * heads * config_.head_dim);
    rotate.cache = attention.cache;
    rotate.sequences = places.sequences;
    rotate.tables = places.tables;
    Check(kernels_.rotate(rotate, stream()), "rotating");
    attention.q = rotate.q;
    attention.tiles = places.tiles;
    attention.tile_count = static_cast<int32_t>(form.tiles);
  }
  // As many blocks share a tile's splits as keep two on every multiprocessor.
  const int64_t blocks = int64_t{attention.tile_count} * config_.kv_heads;
  attention.workers = static_cast<int32_t>(std::clamp<int64_t>(2 * multiprocessors_ / blocks, 1, form.splits_max));

  ProductArgs output;
  if (attention.workers == 1) {
    output.source.kind = RowSource::kPlanes;
    output.planes = NewPlanes(rows, context_width());
    attention.context = output.planes;
  } else {
    attention.partials.splits_max = static_cast<int32_t>(form.splits_max);
    attention.partials.o = arena_.Floats(rows * heads * form.splits_max * config_.value_dim);
    attention.partials.m = arena_.Floats(rows * heads * form.splits_max);
    attention.partials.l = arena_.Floats(rows * heads * form.splits_max);
    output.source.kind = RowSource::kMerged;
    output.source.partial = attention.partials.o;
    output.source.tops = attention.partials.m;
    output.source.sums = attention.partials.l;
    output.source.lengths = places.lengths;
    output.source.heads = config_.heads;
    output.source.splits = attention.partials.splits_max;
    output.source.value_dim = config_.value_dim;
    output.source.split_length = kSplitPositions;
  }
  Check(kernels_.attention(attention, stream()), "attending");
  AddOutput(weights, output, rows, FloatsOf(hidden), FloatsOf(hidden));
}

}  // namespace c3po::cuda
