#ifndef C3PO_SERVER_COMPUTE_CUDA_PACKED_MATRIX_H_
#define C3PO_SERVER_COMPUTE_CUDA_PACKED_MATRIX_H_

#include <cstdint>

#include "server/compute/cuda/layout.h"

namespace c3po::cuda {

// The bfloat16 planes of a float32: hi + mid + lo. hi = bf16(x), mid = bf16(x - hi), lo = x - hi - mid, bf16 rounding
// to nearest even.
//
// The sum is x, exactly, if x is a multiple of 2^-133 (bfloat16's smallest subnormal), hence for all |x| >= 2^-110:
// with u the unit in the last place of x, x = n u, |n| < 2^24. hi keeps 8 significant bits, so |x - hi| <= 2^15 u,
// a multiple of u that a float32 holds. mid keeps 8 bits of its at most 16, so |x - hi - mid| <= 2^7 u, again a
// multiple of u: 8 bits, which a bfloat16 holds.
// Smaller x lose what is below 2^-133: the sum is within 2^-134 of x.
// Where rounding hi would overflow (|x| > 3.39e38) hi is rounded toward zero; then |x - hi| < 2^16 u, and the same
// holds. Infinities and what is not a number are hi alone, mid = lo = 0.
struct FloatPlanes {
  uint16_t planes[3];
};
FloatPlanes PlanesOfFloat(float x);
float FloatOfPlanes(const FloatPlanes& planes);

uint16_t RoundToBfloat16(float x);  // to nearest even; what is not a number stays none
float WidenBfloat16(uint16_t bits);

// How the matrix of a role (server/model/config/weight_use.h) becomes packed matrices, one behind the other.
//
// Packed memory starts zeroed, as the padding is; then Pack puts rows and columns of the role's matrix where they
// belong, in any pieces and order. Two threads may pack at a time unless both write the same row.
//
// Of 16 bits, or of 8 or 4 (WithBits): then PackGroup takes what PackRow does else.
class PackedLayout {
 public:
  // One matrix.
  static PackedLayout Plain(int64_t rows, int64_t columns, int planes);
  // [n 2f, d]: gate rows, then up rows, of each of n networks. n packed matrices [2 f', d], f' = f padded to 16, rows
  // in the order of GateRow and UpRow.
  static PackedLayout GateUp(int64_t networks, int64_t neurons, int64_t columns, int planes);
  // [d, n f], side by side: n packed matrices [d, f].
  static PackedLayout SideBySide(int64_t rows, int64_t networks, int64_t neurons, int planes);

  // The same of levels and scales: bits 8 or 4. `planes` are then those of the rows that it is multiplied with.
  PackedLayout WithBits(int bits) const;

  int64_t rows() const { return rows_; }        // of the role's matrix
  int64_t columns() const { return columns_; }  // likewise
  int planes() const { return planes_; }
  int bits() const { return bits_; }
  int64_t matrices() const { return matrices_; }
  int64_t matrix_rows() const { return matrix_rows_; }        // M
  int64_t matrix_columns() const { return matrix_columns_; }  // K
  int64_t matrix_bytes() const { return PackedBytes(matrix_rows_, matrix_columns_, planes_, bits_); }
  int64_t bytes() const { return matrices_ * matrix_bytes(); }
  // Of packed memory at `data`, on the device.
  PackedWeights Weights(const void* data) const;

  // `count` entries of a row of the role's matrix, from `column` on. One plane: rounded to bfloat16. Three: exact as
  // above; of bfloat16, mid = lo = 0.
  void PackRow(int64_t row, int64_t column, const float* values, int64_t count, void* packed) const;
  void PackRow(int64_t row, int64_t column, const uint16_t* bfloat16, int64_t count, void* packed) const;
  // The group of row `row` of the role's matrix whose first column is `column`, a multiple of 32 in its packed matrix:
  // the levels of its columns that there are, and its scale, a bfloat16.
  void PackGroup(int64_t row, int64_t column, const int8_t* levels, int64_t count, uint16_t scale, void* packed) const;
  // One entry again, the sum of its planes, or its level times its scale.
  float Entry(int64_t row, int64_t column, const void* packed) const;

  // Of 16 bits: bytes from the packed memory's beginning to entry (row, column) of the role's matrix, in plane 0. Other
  // planes are kTileBytes behind each other.
  int64_t OffsetOf(int64_t row, int64_t column) const;

 private:
  // Where an entry of the role's matrix is among the packed ones.
  struct PackedPlace {
    int64_t matrix, row, column;
  };
  PackedPlace PlaceInMatrix(int64_t row, int64_t column) const;
  // Where a group's levels and scale lie: of the byte that has its level of (tile, column of it), and of the scale.
  int64_t BlockOf(const PackedPlace& at) const;
  int64_t LevelOf(const PackedPlace& at) const;
  int64_t ScaleOf(const PackedPlace& at) const;
  template <class Value>
  void PackValues(int64_t row, int64_t column, const Value* values, int64_t count, void* packed) const;
  int64_t OffsetIn(int64_t matrix, int64_t row, int64_t column) const;

  int64_t rows_ = 0, columns_ = 0;
  int planes_ = 1, bits_ = 16;
  int64_t matrices_ = 1, matrix_rows_ = 0, matrix_columns_ = 0;
  int64_t gate_up_neurons_ = 0;  // f of GateUp, else 0
};

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_PACKED_MATRIX_H_
