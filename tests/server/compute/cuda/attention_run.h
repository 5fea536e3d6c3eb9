#ifndef C3PO_TESTS_SERVER_COMPUTE_CUDA_ATTENTION_RUN_H_
#define C3PO_TESTS_SERVER_COMPUTE_CUDA_ATTENTION_RUN_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "server/compute/cuda/attention.h"
#include "server/compute/cuda/rows.h"
#include "tests/host_cuda/device_array.h"
#include "tests/server/compute/cuda/attention_trial.h"

namespace c3po::cuda {

inline constexpr float kScale = 0.3f;

// A sequence's rows of one step.
struct Rows {
  int sequence = 0;
  int start = 0;  // those before are in the cache
  int rows = 1;
};

// Sequences, and a cache in which those share their first positions that begin with the same prompt. Slots that no
// position has taken hold NaN.
class Cache {
 public:
  // `lengths`: of the sequences; `beginning`: positions that all share, at most each length.
  Cache(const HeadTrial& trial, int block_positions, const std::vector<int>& lengths, int beginning, uint32_t seed)
      : trial_(trial), block_positions_(block_positions), random_(seed), oracle_(trial, random_) {
    std::vector<RawRow> shared;
    for (int p = 0; p < beginning; ++p) shared.push_back(RandomRow(trial, random_));
    for (const int length : lengths) {
      std::vector<RawRow> rows = shared;
      while (static_cast<int>(rows.size()) < length) rows.push_back(RandomRow(trial, random_));
      rows_.push_back(rows);
    }
    const auto blocks_of = [&](int positions) { return (positions + block_positions - 1) / block_positions; };
    int blocks = blocks_of(beginning) + 1;  // One that nobody names.
    for (const int length : lengths) blocks += blocks_of(length - beginning);
    std::vector<int32_t> names(static_cast<size_t>(blocks));
    for (int i = 0; i < blocks; ++i) names[static_cast<size_t>(i)] = i;
    std::shuffle(names.begin(), names.end(), random_);
    tables_.assign(names.begin(), names.begin() + blocks_of(beginning));
    for (const int length : lengths) {
      sequences_.push_back({beginning, 0, static_cast<int32_t>(tables_.size())});
      const auto first = names.begin() + static_cast<std::ptrdiff_t>(tables_.size());
      tables_.insert(tables_.end(), first, first + blocks_of(length - beginning));
    }
    blocks_ = blocks;
  }

  const HeadTrial& trial() const { return trial_; }
  const TransformOracle& oracle() const { return oracle_; }
  const RawRow& Row(int sequence, int position) const {
    return rows_[static_cast<size_t>(sequence)][static_cast<size_t>(position)];
  }
  void MakeNan(int sequence, int position) {
    RawRow& row = rows_[static_cast<size_t>(sequence)][static_cast<size_t>(position)];
    for (std::vector<float>* all : {&row.q, &row.k, &row.v}) std::fill(all->begin(), all->end(), NAN);
  }
  int block_positions() const { return block_positions_; }
  const std::vector<AttentionSequence>& sequences() const { return sequences_; }
  const std::vector<int32_t>& tables() const { return tables_; }

  size_t KeyBytes() const { return Bytes(trial_.head_dim); }
  size_t ValueBytes() const { return Bytes(trial_.value_dim); }

  // The slot of a position, in rows of a head.
  size_t SlotOf(int sequence, int position, int kv_head) const {
    const AttentionSequence& s = sequences_[static_cast<size_t>(sequence)];
    const bool shared = position < s.beginning_positions;
    const int local = shared ? position : position - s.beginning_positions;
    const int block = tables_[static_cast<size_t>((shared ? s.beginning : s.own) + local / block_positions_)];
    return static_cast<size_t>((block * trial_.kv_heads + kv_head) * block_positions_ + local % block_positions_);
  }
  float Entry(const std::vector<uint8_t>& bytes, int dim, size_t slot, int i) const {
    const size_t index = slot * static_cast<size_t>(CacheWidth(dim)) + static_cast<size_t>(i);
    if (trial_.planes == 1) {
      uint16_t bits;
      std::memcpy(&bits, bytes.data() + index * 2, 2);
      return FromBFloat16(bits);
    }
    float x;
    std::memcpy(&x, bytes.data() + index * 4, 4);
    return x;
  }

 private:
  size_t Bytes(int dim) const {
    return static_cast<size_t>(blocks_ * trial_.kv_heads * block_positions_ * CacheWidth(dim) *
                               (trial_.planes == 1 ? 2 : 4));
  }

  HeadTrial trial_;
  int block_positions_;
  std::mt19937 random_;
  TransformOracle oracle_;
  std::vector<std::vector<RawRow>> rows_;
  std::vector<AttentionSequence> sequences_;
  std::vector<int32_t> tables_;
  int blocks_ = 0;
};

enum class How {
  kFused,  // norm, rotation and append in the attention kernel
  kApart,  // by LaunchRotate, one row a tile
  kTiles,  // by LaunchRotate, tiles as full as they get
};

// One step after another on one cache.
class CacheRun {
 public:
  explicit CacheRun(const Cache& cache)
      : cache_(cache),
        keys_(cache.KeyBytes()),
        values_(cache.ValueBytes()),
        sequences_(cache.sequences()),
        tables_(cache.tables()) {}

  // `padding` rows of no sequence at the end. workers 0: no partials.
  std::vector<uint16_t> Step(const std::vector<Rows>& step, How how, int workers, int padding = 0) {
    const HeadTrial& trial = cache_.trial();
    std::vector<RawRow> raw;
    std::vector<AttentionRow> rows;
    std::vector<AttentionTile> tiles;
    int splits = 1;
    for (const Rows& part : step) {
      const int tile_rows = how == How::kTiles ? RowsPerTile(trial.heads, trial.kv_heads) : 1;
      for (int i = 0; i < part.rows; i += tile_rows) {
        tiles.push_back({static_cast<int32_t>(rows.size()) + i, std::min(tile_rows, part.rows - i)});
      }
      for (int i = 0; i < part.rows; ++i) {
        raw.push_back(cache_.Row(part.sequence, part.start + i));
        rows.push_back({part.sequence, part.start + i});
      }
      splits = std::max(splits, SplitsOf(part.start + part.rows - 1));
    }
    for (int i = 0; i < padding; ++i) {
      rows.push_back({-1, 0});
      raw.push_back(raw.front());
      tiles.push_back({static_cast<int32_t>(rows.size()) - 1, 1});
    }
    const int count = static_cast<int>(rows.size());
    const RowsOnDevice source(trial, raw);
    const host_cuda::DeviceArray<AttentionRow> device_rows(rows);
    const host_cuda::DeviceArray<AttentionTile> device_tiles(tiles);
    const host_cuda::DeviceArray<float> q(static_cast<size_t>(count * trial.heads * trial.head_dim));

    RotateArgs rotate;
    rotate.transform = cache_.oracle().Args();
    rotate.source = source.source();
    rotate.rows = device_rows.data();
    rotate.row_count = count;
    rotate.planes = trial.planes;
    rotate.q = q.data();
    rotate.cache = {keys_.data(), values_.data(), cache_.block_positions()};
    rotate.sequences = sequences_.data();
    rotate.tables = tables_.data();
    if (how != How::kFused) {
      EXPECT_EQ(LaunchRotate(rotate, nullptr), nullptr);
    }

    const auto heads = static_cast<size_t>(count * trial.heads * splits);
    const host_cuda::DeviceArray<float> o(heads * static_cast<size_t>(trial.value_dim)), m(heads), l(heads);
    const host_cuda::DeviceArray<uint16_t> context(static_cast<size_t>(trial.planes * count * trial.padded_width()));
    AttentionArgs args;
    args.transform = rotate.transform;
    args.scale = kScale;
    args.rows = device_rows.data();
    args.sequences = sequences_.data();
    args.tables = tables_.data();
    args.cache = rotate.cache;
    args.planes = trial.planes;
    args.tiles = how == How::kTiles ? device_tiles.data() : nullptr;
    args.tile_count = how == How::kTiles ? static_cast<int>(tiles.size()) : count;
    if (how == How::kFused) {
      args.source = source.source();
    } else {
      args.q = q.data();
    }
    const ActivationPlanes planes{context.data(), int64_t{count} * trial.padded_width(), trial.padded_width()};
    args.workers = std::max(1, workers);
    if (workers == 0) {
      args.context = planes;
    } else {
      args.partials = {o.data(), m.data(), l.data(), splits};
    }
    EXPECT_EQ(LaunchAttention(args, nullptr), nullptr);
    if (workers > 0) {
      std::vector<int> lengths;
      for (const AttentionRow& row : rows) lengths.push_back(row.sequence < 0 ? 0 : row.position + 1);
      const host_cuda::DeviceArray<int> device_lengths(lengths);
      RowPlanesArgs merge;
      merge.source.kind = RowSource::kMerged;
      merge.source.partial = o.data();
      merge.source.tops = m.data();
      merge.source.sums = l.data();
      merge.source.lengths = device_lengths.data();
      merge.source.heads = trial.heads;
      merge.source.splits = splits;
      merge.source.value_dim = trial.value_dim;
      merge.source.split_length = kSplitPositions;
      merge.rows = count;
      merge.columns = trial.width();
      merge.planes = trial.planes;
      merge.out = planes;
      EXPECT_EQ(LaunchRowPlanes(merge, nullptr), nullptr);
    }
    return context.Values();
  }

  // Each sequence's positions before `ends`, by steps of one row.
  void Fill(const std::vector<int>& ends) {
    std::vector<Rows> step;
    for (size_t s = 0; s < ends.size(); ++s) {
      if (ends[s] > 0) step.push_back({static_cast<int>(s), 0, ends[s]});
    }
    Append(step);
  }

  void Append(const std::vector<Rows>& step) {
    const HeadTrial& trial = cache_.trial();
    std::vector<RawRow> raw;
    std::vector<AttentionRow> rows;
    for (const Rows& part : step) {
      for (int i = 0; i < part.rows; ++i) {
        raw.push_back(cache_.Row(part.sequence, part.start + i));
        rows.push_back({part.sequence, part.start + i});
      }
    }
    const RowsOnDevice source(trial, raw);
    const host_cuda::DeviceArray<AttentionRow> device_rows(rows);
    RotateArgs rotate;
    rotate.transform = cache_.oracle().Args();
    rotate.source = source.source();
    rotate.rows = device_rows.data();
    rotate.row_count = static_cast<int32_t>(rows.size());
    rotate.planes = trial.planes;
    rotate.cache = {keys_.data(), values_.data(), cache_.block_positions()};
    rotate.sequences = sequences_.data();
    rotate.tables = tables_.data();
    EXPECT_EQ(LaunchRotate(rotate, nullptr), nullptr);
  }

  std::vector<uint8_t> Keys() const { return keys_.Values(); }
  std::vector<uint8_t> Values() const { return values_.Values(); }

 private:
  const Cache& cache_;
  host_cuda::DeviceArray<uint8_t> keys_, values_;
  host_cuda::DeviceArray<AttentionSequence> sequences_;
  host_cuda::DeviceArray<int32_t> tables_;
};

}  // namespace c3po::cuda

#endif  // C3PO_TESTS_SERVER_COMPUTE_CUDA_ATTENTION_RUN_H_
