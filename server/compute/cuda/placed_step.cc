#include "server/compute/cuda/placed_step.h"

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <utility>

namespace c3po::cuda {
namespace {

// Arrays one behind the other, 16-byte aligned, in the block on the host and at the same offset on the device.
class Cursor {
 public:
  Cursor(char* host, const char* device) : host_(host), device_(device) {}

  // Room for `count` entries. The host's end is null where only sizes are wanted.
  template <class T>
  T* Take(int64_t count, const T** device) {
    T* const host = host_ == nullptr ? nullptr : reinterpret_cast<T*>(host_ + offset_);
    *device = reinterpret_cast<const T*>(device_ + offset_);
    offset_ += (count * static_cast<int64_t>(sizeof(T)) + 15) / 16 * 16;
    return host;
  }
  int64_t offset() const { return offset_; }

 private:
  char* const host_;
  const char* const device_;
  int64_t offset_ = 0;
};

// The host's side of StepPlaces.
struct StepArrays {
  int* row_count;
  int* tokens;
  AttentionRow* rows;
  int* lengths;
  AttentionSequence* sequences;
  AttentionTile* tiles;
  RowOverride* overrides;
  int* counts;
  int* head_rows;
  int* targets;
  int* tables;
};

// Tables come last: all before them lie where the form says.
StepArrays Lay(const StepForm& form, int64_t moe_layers, int64_t table_entries, Cursor& cursor, StepPlaces* places) {
  StepArrays arrays{};
  arrays.row_count = cursor.Take(1, &places->row_count);
  arrays.tokens = cursor.Take(form.tokens ? form.rows : 0, &places->tokens);
  arrays.rows = cursor.Take(form.rows, &places->rows);
  arrays.lengths = cursor.Take(form.rows, &places->lengths);
  arrays.sequences = cursor.Take(form.sequences, &places->sequences);
  arrays.tiles = cursor.Take(form.tiles, &places->tiles);
  arrays.overrides = cursor.Take(form.overrides ? moe_layers * form.rows : 0, &places->overrides);
  arrays.counts = cursor.Take(form.counts ? form.rows : 0, &places->counts);
  arrays.head_rows = cursor.Take(form.head_rows, &places->head_rows);
  arrays.targets = cursor.Take(form.targets, &places->targets);
  arrays.tables = cursor.Take(table_entries, &places->tables);
  if (!form.tokens) places->tokens = nullptr;
  if (form.tiles == 0) places->tiles = nullptr;
  if (!form.overrides) places->overrides = nullptr;
  if (!form.counts) places->counts = nullptr;
  return arrays;
}

int64_t BlocksOf(int64_t positions, int block_positions) { return (positions + block_positions - 1) / block_positions; }

// How a sequence's positions are cut.
struct SequenceCut {
  SequenceCut(const SequenceRows& rows, int block_positions) {
    const int64_t length = rows.start + rows.rows;
    beginning_positions = std::min(rows.kv.beginning_positions, length);
    beginning = BlocksOf(beginning_positions, block_positions);
    own = BlocksOf(length - beginning_positions, block_positions);
    if (beginning > static_cast<int64_t>(rows.kv.beginning.size()) ||
        own > static_cast<int64_t>(rows.kv.blocks.size())) {
      throw std::invalid_argument("a sequence has no blocks for its rows");
    }
  }
  int64_t beginning_positions, beginning, own;
};

}  // namespace

int64_t PaddedRows(int64_t rows) {
  for (const int64_t bucket : {1, 2, 4, 8, 16, 24, 32, 48, 64}) {
    if (rows <= bucket) return bucket;
  }
  return rows;
}

PlacedStep::PlacedStep(const ModelConfig& config, std::shared_ptr<DevicePool> memory)
    : config_(config), memory_(std::move(memory)) {}

void PlacedStep::Place(const StepInputs& inputs, const KvCacheShape& cache, HostCopies& copies) {
  const int per_tile = RowsPerTile(config_.heads, config_.kv_heads);
  rows_ = inputs.rows();
  StepForm form;
  form.decode = !inputs.tokens.empty() && rows_ <= kRecordedRowsMax && inputs.targets.empty() &&
                config_.heads / config_.kv_heads <= kTileSlots;
  int64_t longest = 1, tiles = 0;
  table_entries_ = 0;
  for (const SequenceRows& sequence : inputs.sequences) {
    form.decode = form.decode && sequence.rows == 1;
    longest = std::max(longest, sequence.start + sequence.rows);
    tiles += (sequence.rows + per_tile - 1) / per_tile;
    const SequenceCut cut(sequence, cache.block_positions);
    table_entries_ += cut.beginning + cut.own;
  }
  const auto sequences = static_cast<int64_t>(inputs.sequences.size());
  const auto head_rows = static_cast<int64_t>(inputs.head_rows.size());
  form.rows = form.decode ? PaddedRows(rows_) : rows_;
  form.sequences = form.decode ? form.rows : sequences;
  form.tiles = form.decode ? 0 : tiles;
  form.splits_max = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(SplitsOf(longest - 1))));
  form.head_rows = form.decode ? std::min(PaddedRows(head_rows), form.rows) : head_rows;
  if (head_rows == 0) form.head_rows = 0;
  form.targets = static_cast<int64_t>(inputs.targets.size());
  form.tokens = !inputs.tokens.empty();
  form.overrides = !inputs.overrides.empty();
  form.counts = !inputs.counts.empty();
  form_ = form;

  const auto moe_layers = static_cast<int64_t>(config_.moe_layers.size());
  Cursor sizes(nullptr, nullptr);
  StepPlaces unread;
  Lay(form, moe_layers, table_entries_, sizes, &unread);
  if (sizes.offset() > room_) {
    data_ = nullptr;
    room_ = 0;
    const int64_t room = sizes.offset() + sizes.offset() / 2;
    data_ = memory_->Take(room);
    room_ = room;
  }
  Fill(inputs, cache, static_cast<char*>(copies.Prepare(sizes.offset())));
  copies.Send(data_.get(), sizes.offset());
}

void PlacedStep::Fill(const StepInputs& inputs, const KvCacheShape& cache, char* host) {
  Cursor cursor(host, static_cast<const char*>(data_.get()));
  const StepArrays arrays =
      Lay(form_, static_cast<int64_t>(config_.moe_layers.size()), table_entries_, cursor, &places_);
  *arrays.row_count = static_cast<int>(rows_);
  if (form_.tokens) {
    std::fill_n(arrays.tokens, form_.rows, -1);
    std::copy(inputs.tokens.begin(), inputs.tokens.end(), arrays.tokens);
  }
  std::fill_n(arrays.head_rows, form_.head_rows, -1);
  std::copy(inputs.head_rows.begin(), inputs.head_rows.end(), arrays.head_rows);
  std::copy(inputs.targets.begin(), inputs.targets.end(), arrays.targets);
  std::fill_n(arrays.rows, form_.rows, AttentionRow{});
  std::fill_n(arrays.lengths, form_.rows, 0);
  std::fill_n(arrays.sequences, form_.sequences, AttentionSequence{});

  const int per_tile = RowsPerTile(config_.heads, config_.kv_heads);
  int sequence_index = 0, entry = 0;
  AttentionTile* tile = arrays.tiles;
  for (const SequenceRows& sequence : inputs.sequences) {
    const SequenceCut cut(sequence, cache.block_positions);
    arrays.sequences[sequence_index] = {static_cast<int32_t>(cut.beginning_positions), entry,
                                        static_cast<int32_t>(entry + cut.beginning)};
    std::copy_n(sequence.kv.beginning.begin(), cut.beginning, arrays.tables + entry);
    std::copy_n(sequence.kv.blocks.begin(), cut.own, arrays.tables + entry + cut.beginning);
    entry += static_cast<int>(cut.beginning + cut.own);
    for (int64_t i = 0; i < sequence.rows; ++i) {
      const int64_t row = sequence.first_row + i, position = sequence.start + i;
      arrays.rows[row] = {sequence_index, static_cast<int32_t>(position)};
      arrays.lengths[row] = static_cast<int>(position + 1);
    }
    for (int64_t i = 0; !form_.decode && i < sequence.rows; i += per_tile) {
      *tile++ = {static_cast<int32_t>(sequence.first_row + i),
                 static_cast<int32_t>(std::min<int64_t>(per_tile, sequence.rows - i))};
    }
    ++sequence_index;
  }
  if (form_.counts) {
    std::fill_n(arrays.counts, form_.rows, config_.experts_per_token);
    for (const CountedRows& counted : inputs.counts) {
      std::fill(arrays.counts + counted.begin, arrays.counts + counted.end, counted.experts);
    }
  }
  if (form_.overrides) FillOverrides(inputs, arrays.overrides);
}

void PlacedStep::FillOverrides(const StepInputs& inputs, RowOverride* overrides) {
  std::fill_n(overrides, static_cast<int64_t>(config_.moe_layers.size()) * form_.rows, RowOverride{});
  for (size_t i = 0; i < config_.moe_layers.size(); ++i) {
    RoutingOfLayer(inputs.overrides, config_.moe_layers[i], routing_);
    for (const PlacedRoutingRows& placed : routing_) {
      const RowOverride one{static_cast<const float*>(placed.values.data),
                            placed.kind == RoutingOverride::Kind::kWeights ? 1 : 0};
      std::fill_n(overrides + static_cast<int64_t>(i) * form_.rows + placed.begin, placed.end - placed.begin, one);
    }
  }
}

}  // namespace c3po::cuda
