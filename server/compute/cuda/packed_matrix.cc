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

PackedLayout PackedLayout::WithBits(int bits) const {
  PackedLayout layout = *this;
  layout.bits_ = bits;
  return layout;
}

PackedWeights PackedLayout::Weights(const void* data) const {
  return {data, static_cast<int>(matrix_rows_), static_cast<int>(matrix_columns_), planes_, matrix_bytes(), bits_};
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

PackedLayout::PackedPlace PackedLayout::PlaceInMatrix(int64_t row, int64_t column) const {
  if (gate_up_neurons_ > 0) {
    const int64_t f = gate_up_neurons_, in_network = row % (2 * f);
    return {row / (2 * f), in_network < f ? GateRow(in_network) : UpRow(in_network - f), column};
  }
  return {column / matrix_columns_, row, column % matrix_columns_};
}

int64_t PackedLayout::OffsetOf(int64_t row, int64_t column) const {
  const PackedPlace at = PlaceInMatrix(row, column);
  return OffsetIn(at.matrix, at.row, at.column);
}

int64_t PackedLayout::BlockOf(const PackedPlace& at) const {
  const int64_t block = at.row / kBandRows * BlocksOfBand(static_cast<int>(matrix_columns_), bits_) +
                        at.column / (kChunkColumns * BlockChunks(bits_));
  return at.matrix * matrix_bytes() + block * BlockBytes(bits_);
}

int64_t PackedLayout::LevelOf(const PackedPlace& at) const {
  const int place = PlaceOf(static_cast<int>(at.column % kChunkColumns)), c = place % 16;
  const int64_t tile = at.column / kChunkColumns % BlockChunks(bits_) * 2 + place / 16;
  const int64_t lane = at.row % 8 * 4 + c % 8 / 2, half = at.row % kBandRows / 8;
  const int64_t word = bits_ == 8 ? c / 8 : 0;
  return BlockOf(at) + lane * 16 + tile * bits_ + word * 4 + half + c % 2 * 2;
}

int64_t PackedLayout::ScaleOf(const PackedPlace& at) const {
  const int64_t chunk = at.column / kChunkColumns % BlockChunks(bits_);
  return BlockOf(at) + kLevelBytes + 4 * (at.row % 8 * BlockChunks(bits_) + chunk) + at.row % kBandRows / 8 * 2;
}

void PackedLayout::PackGroup(int64_t row, int64_t column, const int8_t* levels, int64_t count, uint16_t scale,
                             void* packed) const {
  char* const bytes = static_cast<char*>(packed);
  const PackedPlace first = PlaceInMatrix(row, column);
  Put(bytes + ScaleOf(first), scale);
  for (int64_t k = 0; k < count; ++k) {
    const int level = levels[k];
    char& byte = bytes[LevelOf({first.matrix, first.row, first.column + k})];
    if (bits_ == 8) {
      byte = static_cast<char>(level < 0 ? 0x80 | -level : level);
    } else {
      const int shift = PlaceOf(static_cast<int>(k)) % 16 / 8 * 4;
      byte = static_cast<char>((byte & ~(15 << shift)) | (level & 15) << shift);
    }
  }
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
  if (bits_ != 16) {
    const PackedPlace at = PlaceInMatrix(row, column);
    const char* const bytes = static_cast<const char*>(packed);
    uint16_t scale;
    std::memcpy(&scale, bytes + ScaleOf(at), sizeof scale);
    const int byte = static_cast<unsigned char>(bytes[LevelOf(at)]);
    const int nibble = byte >> PlaceOf(static_cast<int>(at.column % kChunkColumns)) % 16 / 8 * 4 & 15;
    const int level = bits_ == 4 ? (nibble ^ 8) - 8 : byte < 128 ? byte : -(byte & 127);
    return WidenBfloat16(scale) * static_cast<float>(level);
  }
  FloatPlanes planes{};
  const char* const from = static_cast<const char*>(packed) + OffsetOf(row, column);
  for (int p = 0; p < planes_; ++p) std::memcpy(&planes.planes[p], from + p * kTileBytes, sizeof(uint16_t));
  return FloatOfPlanes(planes);
}

}  // namespace c3po::cuda
