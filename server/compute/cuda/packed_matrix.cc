#include "server/compute/cuda/packed_matrix.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

namespace c3po::cuda {
namespace {

FloatPlanes Rounded(float x, int planes) {
  return planes == 1 ? FloatPlanes{{RoundToBfloat16(x), 0, 0}} : PlanesOfFloat(x);
}
FloatPlanes Rounded(uint16_t bfloat16, int /*planes*/) { return {{bfloat16, 0, 0}}; }

void Put(char* to, uint16_t bits) { std::memcpy(to, &bits, sizeof bits); }

}  // namespace

uint16_t RoundToBfloat16(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  if (std::isnan(x)) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float WidenBfloat16(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

FloatPlanes PlanesOfFloat(float x) {
  uint16_t hi = RoundToBfloat16(x);
  if (!std::isfinite(x)) return {{hi, 0, 0}};
  if (!std::isfinite(WidenBfloat16(hi))) hi = static_cast<uint16_t>(std::bit_cast<uint32_t>(x) >> 16);
  const float rest = x - WidenBfloat16(hi);
  const uint16_t mid = RoundToBfloat16(rest);
  return {{hi, mid, RoundToBfloat16(rest - WidenBfloat16(mid))}};
}

float FloatOfPlanes(const FloatPlanes& planes) {
  return WidenBfloat16(planes.planes[0]) + (WidenBfloat16(planes.planes[1]) + WidenBfloat16(planes.planes[2]));
}

PackedLayout PackedLayout::Plain(int64_t rows, int64_t columns, int planes) {
  PackedLayout layout;
  layout.rows_ = layout.matrix_rows_ = rows;
  layout.columns_ = layout.matrix_columns_ = columns;
  layout.planes_ = planes;
  return layout;
}

PackedLayout PackedLayout::GateUp(int64_t networks, int64_t neurons, int64_t columns, int planes) {
  PackedLayout layout = Plain(networks * 2 * neurons, columns, planes);
  layout.matrices_ = networks;
  layout.matrix_rows_ = 2 * RoundUp(neurons, kBandRows);
  layout.gate_up_neurons_ = neurons;
  return layout;
}

PackedLayout PackedLayout::SideBySide(int64_t rows, int64_t networks, int64_t neurons, int planes) {
  PackedLayout layout = Plain(rows, networks * neurons, planes);
  layout.matrices_ = networks;
  layout.matrix_columns_ = neurons;
  return layout;
}

PackedWeights PackedLayout::Weights(const void* data) const {
  return {data, static_cast<int>(matrix_rows_), static_cast<int>(matrix_columns_), planes_, matrix_bytes()};
}

int64_t PackedLayout::OffsetIn(int64_t matrix, int64_t row, int64_t column) const {
  const int64_t chunks = RoundUp(matrix_columns_, kChunkColumns) / kChunkColumns;
  const int place = PlaceOf(static_cast<int>(column % kChunkColumns));
  const int64_t tile = (row / kBandRows * chunks + column / kChunkColumns) * 2 + place / 16;
  const int64_t r = row % kBandRows, c = place % 16;
  const int64_t lane = r % 8 * 4 + c % 8 / 2;
  const int64_t entry = r / 8 * 2 + c / 8 * 4 + c % 2;
  return matrix * matrix_bytes() + tile * planes_ * kTileBytes + lane * 16 + entry * 2;
}

int64_t PackedLayout::OffsetOf(int64_t row, int64_t column) const {
  if (gate_up_neurons_ > 0) {
    const int64_t f = gate_up_neurons_, in_network = row % (2 * f);
    return OffsetIn(row / (2 * f), in_network < f ? GateRow(in_network) : UpRow(in_network - f), column);
  }
  return OffsetIn(column / matrix_columns_, row, column % matrix_columns_);
}

// Eight neighboring entries from a multiple of eight on are four words of one lane, two in each tile.
template <class Value>
void PackedLayout::PackValues(int64_t row, int64_t column, const Value* values, int64_t count, void* packed) const {
  const int64_t tile_bytes = int64_t{planes_} * kTileBytes;
  for (int64_t i = 0; i < count;) {
    const int64_t in_matrix = (column + i) % matrix_columns_;
    char* const to = static_cast<char*>(packed) + OffsetOf(row, column + i);
    const bool eight = in_matrix % 8 == 0 && count - i >= 8 && matrix_columns_ - in_matrix >= 8;
    for (int64_t j = 0; j < (eight ? 8 : 1); ++j) {
      const FloatPlanes planes = Rounded(values[i + j], planes_);
      char* const entry = to + j / 4 * tile_bytes + j / 2 % 2 * 8 + j % 2 * 2;
      for (int p = 0; p < planes_; ++p) Put(entry + p * kTileBytes, planes.planes[p]);
    }
    i += eight ? 8 : 1;
  }
}

void PackedLayout::PackRow(int64_t row, int64_t column, const float* values, int64_t count, void* packed) const {
  PackValues(row, column, values, count, packed);
}

void PackedLayout::PackRow(int64_t row, int64_t column, const uint16_t* bfloat16, int64_t count, void* packed) const {
  PackValues(row, column, bfloat16, count, packed);
}

float PackedLayout::Entry(int64_t row, int64_t column, const void* packed) const {
  FloatPlanes planes{};
  const char* const from = static_cast<const char*>(packed) + OffsetOf(row, column);
  for (int p = 0; p < planes_; ++p) std::memcpy(&planes.planes[p], from + p * kTileBytes, sizeof(uint16_t));
  return FloatOfPlanes(planes);
}

}  // namespace c3po::cuda
