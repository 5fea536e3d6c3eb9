// W goes by in blocks that stay in L2: logits of a block, their exponentials, and the block's rows weighted by them.
// The largest logit so far is what exponentials are relative to; when it rises, the sums so far shrink. Chunks of
// blocks run beside each other and are put together in their order. Every other pass begins at the last chunk, since a
// descent makes one pass after the other: what the third level of cache kept of W is what was read last.
#include "server/compute/cpu/softmax_mean.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

#include "server/compute/cpu/row_operations.h"
#include "server/compute/cpu/thread_pool.h"

namespace c3po::cpu {
namespace {

constexpr int64_t kBlockBytes = 192 << 10;
constexpr int64_t kChunksMax = 32;  // More than threads need; each has a mean of its own for every row.

// How W is cut, which depends on W alone.
struct Cut {
  explicit Cut(const WeightView& w) : rows(w.rows) {
    const int64_t row_bytes = w.columns * (w.quantized() ? 1 : w.bfloat16 ? 2 : 4);
    block = std::clamp<int64_t>(kBlockBytes / row_bytes / 48 * 48, 48, 768);  // Whole tiles, and whole panels.
    const int64_t blocks = (rows + block - 1) / block;
    chunk = (blocks + kChunksMax - 1) / kChunksMax * block;
    chunks = (rows + chunk - 1) / chunk;
  }
  int64_t rows, block, chunk, chunks;
};

// Of some rows of W, for every row of x: sums relative to `tops`; weighted [m, k] are not divided by their sum.
struct Partial {
  std::vector<float> tops, weighted;
  std::vector<double> sums;
};

class ChunkPass {
 public:
  // `job`: of NewProductJob(), the same for all chunks of a pass.
  ChunkPass(const RowsView& x, const WeightView& w, float divisor, bool with_means, int64_t job)
      : w_(w), divisor_(divisor), with_means_(with_means), job_(job), product_{x, w, {}} {}

  Partial Run(int64_t begin, int64_t end, int64_t block) {
    Partial partial;
    const int64_t rows = product_.x.rows;
    partial.tops.assign(static_cast<size_t>(rows), -std::numeric_limits<float>::infinity());
    partial.sums.assign(static_cast<size_t>(rows), 0);
    if (with_means_) partial.weighted.assign(static_cast<size_t>(rows * w_.columns), 0);
    logits_.resize(static_cast<size_t>(rows * block));
    for (; begin < end; begin += block) Add(w_.Rows(begin, std::min(end, begin + block)), begin + block < end, partial);
    return partial;
  }

 private:
  // `more`: another block follows in memory.
  void Add(const WeightView& w, bool more, Partial& partial) {
    product_.w = w;
    product_.y = {logits_.data(), w.rows, nullptr};
    MultiplyTransposedHere(product_, job_);
    const int64_t rows = product_.x.rows;
    for (int64_t m = 0; m < rows; ++m) {
      float* logits = logits_.data() + m * w.rows;
      if (divisor_ != 1) std::for_each(logits, logits + w.rows, [this](float& logit) { logit /= divisor_; });
      float top;
      const double sum = SumOfExp(logits, w.rows, &top);
      float& so_far = partial.tops[m];
      if (top > so_far) {
        const float factor = std::exp(so_far - top);
        partial.sums[m] *= factor;
        if (with_means_) Scale(factor, partial.weighted.data() + m * w.columns, w.columns);
        so_far = top;
      }
      partial.sums[m] += sum * std::exp(double{top} - so_far);
      if (with_means_) ScaledExpInPlace(logits, w.rows, so_far, 1);
    }
    if (!with_means_) return;
    const RowsView weights{logits_.data(), w.rows, rows, nullptr};
    MultiplyAddHere({weights, w, {partial.weighted.data(), w.columns, nullptr}, more ? BytesOf(w) : 0});
  }

  static int64_t BytesOf(const WeightView& w) {
    if (w.quantized()) return w.cut.Panels(w.rows) * PanelBytes(w.layout, w.cut.panel_groups);
    return w.rows * w.row_stride() * (w.bfloat16 ? 2 : 4);
  }

  static void Scale(float factor, float* values, int64_t size) {
    for (int64_t i = 0; i < size; ++i) values[i] *= factor;
  }

  const WeightView w_;
  const float divisor_;
  const bool with_means_;
  const int64_t job_;
  DotProduct product_;         // of the block
  std::vector<float> logits_;  // [m, rows of a block]
};

}  // namespace

void SoftmaxMean(const RowsView& x, const WeightView& w, float divisor, float* tops, double* sums, float* means) {
  static std::atomic<uint32_t> passes = 0;
  const Cut cut(w);
  std::vector<Partial> partials(static_cast<size_t>(cut.chunks));
  const bool backward = passes.fetch_add(1, std::memory_order_relaxed) % 2 == 1;
  const int64_t job = NewProductJob();
  ThreadPool::Shared().Run(cut.chunks, [&](int64_t place) {
    const int64_t i = backward ? cut.chunks - 1 - place : place;
    partials[i] = ChunkPass(x, w, divisor, means != nullptr, job)
                      .Run(i * cut.chunk, std::min(cut.rows, (i + 1) * cut.chunk), cut.block);
  });
  ParallelFor(x.rows, 8, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      tops[m] = partials[0].tops[m];
      for (const Partial& partial : partials) tops[m] = std::max(tops[m], partial.tops[m]);
      sums[m] = 0;
      for (const Partial& partial : partials) sums[m] += partial.sums[m] * std::exp(double{partial.tops[m]} - tops[m]);
      if (means == nullptr) continue;
      float* mean = means + m * w.columns;
      std::fill(mean, mean + w.columns, 0.0f);
      for (const Partial& partial : partials) {
        const double share = std::exp(double{partial.tops[m]} - tops[m]) / sums[m];
        AddScaled(static_cast<float>(share), partial.weighted.data() + m * w.columns, w.columns, mean);
      }
    }
  });
}

}  // namespace c3po::cpu
