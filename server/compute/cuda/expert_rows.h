#ifndef C3PO_SERVER_COMPUTE_CUDA_EXPERT_ROWS_H_
#define C3PO_SERVER_COMPUTE_CUDA_EXPERT_ROWS_H_

#include "index/base/cuda/device.h"
#include "server/compute/cuda/expert_products.h"

// Kernel code: each expert's rows, listed by every block for itself.
namespace c3po::cuda {

inline constexpr int kSelectionRows = 64;  // Rows that a list is made of, at most: a bit each.

// Some rows of one network.
struct ExpertPass {
  int network;  // `experts`: what runs in every row
  int first;    // of ExpertRows::pairs, or the first row
  int count;    // at most kPassRows
};

// Of rows [first_row, first_row + rows). Ascending by expert, then what runs in every row; an expert's rows ascending.
struct ExpertRows {
  const ExpertPass* passes;
  const int* pairs;
  int routed, all;  // passes
  int experts, first_row, rows;
  const uint32_t* masks;  // [experts, 2]: a bit for each row that selected the expert
  const int* offsets;     // [experts]: its first pair

  // The pair at place `i` of a pass, or -1 behind its last.
  C3PO_DEVICE int PairOf(const ExpertPass& pass, int i) const {
    if (i >= pass.count) return -1;
    return pass.network < experts ? pairs[pass.first + i] : pass.first + i;
  }
  // Place of row first_row + `row` in a pass, or -1.
  C3PO_DEVICE int PlaceOfRow(const ExpertPass& pass, int row) const {
    int place = row + first_row - pass.first;
    if (pass.network < experts) {
      if ((masks[2 * pass.network + row / 32] >> row % 32 & 1) == 0) return -1;
      place = RowsBelow(pass.network, row) + offsets[pass.network] - pass.first;
    }
    return place >= 0 && place < pass.count ? place : -1;
  }
  // How many rows before `row` selected an expert.
  C3PO_DEVICE int RowsBelow(int expert, int row) const {
    const uint32_t below = masks[2 * expert + row / 32] & ((1u << row % 32) - 1);
    return device::CountBits(below) + (row >= 32 ? device::CountBits(masks[2 * expert]) : 0);
  }
};

// Blocks of rows that a selection is cut into, and the bytes of shared memory that ListExpertRows takes.
constexpr int RowBlocks(const ExpertSelection& selection) {
  return (selection.rows + kSelectionRows - 1) / kSelectionRows;
}
constexpr int ExpertRowsBytes(const ExpertSelection& selection, int pass_rows) {
  const int rows = selection.rows < kSelectionRows ? selection.rows : kSelectionRows;
  const int pairs = rows * selection.k;
  const int passes =
      (pairs < selection.experts ? pairs : selection.experts) + pairs / pass_rows + (rows + pass_rows - 1) / pass_rows;
  return static_cast<int>(RoundUp(4 * (3 * selection.experts + pairs + 1 + 3 * passes), 16));
}

// By all threads of the block: the rows of block row BlockY(). Each expert's rows are bits of two words, so that the
// list does not depend on the order of the threads. `shared`: something runs in every row.
template <int kPassRows>
C3PO_DEVICE ExpertRows ListExpertRows(const ExpertSelection& selection, bool shared, void* memory) {
  const int first_row = device::BlockY() * kSelectionRows, rows_left = selection.rows - first_row;
  const int rows = rows_left < kSelectionRows ? rows_left : kSelectionRows;
  const int experts = selection.k > 0 ? selection.experts : 0, entries = rows * selection.k;
  uint32_t* const masks = static_cast<uint32_t*>(memory);
  int* const offsets = reinterpret_cast<int*>(masks + 2 * experts);
  int* const pairs = offsets + experts;
  int* const routed_passes = pairs + entries;
  ExpertPass* const passes = reinterpret_cast<ExpertPass*>(routed_passes + 1);
  for (int i = device::Thread(); i < 2 * experts; i += device::Threads()) masks[i] = 0;
  device::SyncBlock();
  const int* const selected = selection.selected + int64_t{first_row} * selection.k;
  for (int i = device::Thread(); i < entries; i += device::Threads()) {
    const int e = selected[i], row = i / selection.k;
    if (e >= 0 && e < experts) device::AtomicOr(&masks[2 * e + row / 32], 1u << row % 32);
  }
  device::SyncBlock();
  if (device::Warp() == 0) {
    int pair_base = 0, pass_base = 0;
    for (int base = 0; base < experts; base += 32) {
      const int e = base + device::Lane();
      const int count = e < experts ? device::CountBits(masks[2 * e]) + device::CountBits(masks[2 * e + 1]) : 0;
      const int own = (count + kPassRows - 1) / kPassRows;
      int pairs_before = count, passes_before = own;
      C3PO_UNROLL
      for (int delta = 1; delta < 32; delta *= 2) {
        const int more_pairs = device::ShuffleUp(pairs_before, delta);
        const int more_passes = device::ShuffleUp(passes_before, delta);
        if (device::Lane() >= delta) {
          pairs_before += more_pairs;
          passes_before += more_passes;
        }
      }
      const int pairs_until = pair_base + pairs_before, passes_until = pass_base + passes_before;
      if (e < experts) offsets[e] = pairs_until - count;
      for (int i = 0; i < own; ++i) {
        const int left = count - i * kPassRows;
        passes[passes_until - own + i] = {e, pairs_until - left, left < kPassRows ? left : kPassRows};
      }
      pair_base = device::Shuffle(pairs_until, 31);
      pass_base = device::Shuffle(passes_until, 31);
    }
    if (device::Lane() == 0) *routed_passes = pass_base;
    for (int i = device::Lane(); shared && i * kPassRows < rows; i += 32) {
      const int left = rows - i * kPassRows;
      passes[pass_base + i] = {experts, first_row + i * kPassRows, left < kPassRows ? left : kPassRows};
    }
  }
  device::SyncBlock();
  ExpertRows list{passes, pairs, 0, 0, experts, first_row, rows, masks, offsets};
  for (int i = device::Thread(); i < entries; i += device::Threads()) {
    const int e = selected[i];
    if (e < 0 || e >= experts) continue;
    pairs[offsets[e] + list.RowsBelow(e, i / selection.k)] = first_row * selection.k + i;
  }
  device::SyncBlock();
  list.routed = *routed_passes;
  list.all = list.routed + (shared ? (rows + kPassRows - 1) / kPassRows : 0);
  return list;
}

// Byte offsets of this lane's rows (lane / 4 of each tile) among those that enter; -1: none. They are by pair, or
// `pairs_per_row` pairs share one.
template <int kTiles>
C3PO_DEVICE void FindPassRows(const ExpertRows& list, const ExpertPass& pass, const ActivationPlanes& in,
                              int pairs_per_row, int64_t (&row)[kTiles]) {
  C3PO_UNROLL
  for (int tile = 0; tile < kTiles; ++tile) {
    const int pair = list.PairOf(pass, 8 * tile + device::Lane() / 4);
    row[tile] = pair < 0 ? -1 : int64_t{pair / pairs_per_row} * in.stride * 2;
  }
}

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_EXPERT_ROWS_H_
