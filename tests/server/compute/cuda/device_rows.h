#ifndef C3PO_TESTS_SERVER_COMPUTE_CUDA_DEVICE_ROWS_H_
#define C3PO_TESTS_SERVER_COMPUTE_CUDA_DEVICE_ROWS_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "server/compute/cpu/quantized_panels.h"
#include "server/compute/cuda/layout.h"
#include "server/compute/cuda/packed_matrix.h"
#include "tests/host_cuda/device_array.h"

// Rows and weights for tests of products: as plain float32 matrices, as their oracles see them, and as they lie on the
// device. What a kernel has no business to read is NaN.
namespace c3po::cuda {

using host_cuda::DeviceArray;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Row-major float32 [rows, columns].
struct Floats {
  int rows = 0, columns = 0;
  std::vector<float> values;

  Floats() = default;
  Floats(int r, int c) : rows(r), columns(c), values(static_cast<size_t>(r) * static_cast<size_t>(c)) {}
  float& operator()(int r, int c) { return values[static_cast<size_t>(r) * static_cast<size_t>(columns) + c]; }
  float operator()(int r, int c) const { return values[static_cast<size_t>(r) * static_cast<size_t>(columns) + c]; }
};

inline Floats RandomFloats(int rows, int columns, std::mt19937& random, float scale = 1) {
  Floats x(rows, columns);
  std::normal_distribution<float> normal(0, scale);
  for (float& v : x.values) v = normal(random);
  return x;
}

// What a product of so many planes computes with.
inline double Seen(float x, int planes) { return planes == 1 ? WidenBfloat16(RoundToBfloat16(x)) : x; }

// The bound of a product's error, as a share of the sum of its terms' magnitudes.
inline double Tolerance(int planes) { return planes == 1 ? 1e-6 : 2e-6; }

// How a product's weights lie, and in how many planes its rows.
struct Lying {
  int bits, planes;
};
inline constexpr Lying kLyings[] = {{16, 1}, {16, 3}, {8, 1}, {8, 3}, {4, 1}, {4, 3}};
inline std::string Named(const Lying& lying) {
  return std::to_string(lying.bits) + " bits, " + std::to_string(lying.planes) + " planes";
}

// Packs w, and says what numbers the packed matrix holds. Of 8 and 4 bits levels and scales are the CPU's.
inline std::vector<uint8_t> PackedMatrix(const PackedLayout& layout, const Floats& w, Floats* held) {
  std::vector<uint8_t> packed(static_cast<size_t>(layout.bytes()));
  *held = Floats(w.rows, w.columns);
  const auto matrix_columns = static_cast<int>(layout.matrix_columns());
  for (int r = 0; r < w.rows; ++r) {
    if (layout.bits() == 16) {
      layout.PackRow(r, 0, &w.values[size_t(r) * size_t(w.columns)], w.columns, packed.data());
      for (int c = 0; c < w.columns; ++c) (*held)(r, c) = static_cast<float>(Seen(w(r, c), layout.planes()));
      continue;
    }
    const auto quants = layout.bits() == 8 ? cpu::WeightLayout::kInt8 : cpu::WeightLayout::kInt4;
    for (int first = 0; first < w.columns;) {
      const int count = std::min(32, matrix_columns - first % matrix_columns);
      float group[cpu::kGroupColumns * cpu::kPanelRows] = {};
      for (int k = 0; k < count; ++k) group[k * cpu::kPanelRows] = w(r, first + k);
      cpu::QuantizedGroups quantized;
      if (!cpu::QuantizeGroups(quants, group, quantized)) throw std::invalid_argument("not finite");
      int8_t levels[cpu::kGroupColumns];
      cpu::LevelsOf(quants, quantized, 0, levels);
      layout.PackGroup(r, first, levels, count, quantized.scales[0], packed.data());
      for (int k = 0; k < count; ++k) (*held)(r, first + k) = WidenBfloat16(quantized.scales[0]) * levels[k];
      first += count;
    }
  }
  return packed;
}

// A packed matrix on the device, of exactly its bytes.
class DeviceWeights {
 public:
  DeviceWeights(const PackedLayout& layout, const Floats& w)
      : layout_(layout), memory_(PackedMatrix(layout, w, &held_)) {}
  PackedWeights view() const { return layout_.Weights(memory_.data()); }
  const Floats& held() const { return held_; }  // what a product computes with

 private:
  PackedLayout layout_;
  Floats held_;
  DeviceArray<uint8_t> memory_;
};

// float32 rows `stride` apart with NaN between them.
class DeviceFloats {
 public:
  DeviceFloats(const Floats& x, int stride) : stride_(stride), memory_(Spread(x, stride)) {}
  DeviceFloats(int rows, int columns, int stride) : DeviceFloats(NotANumber(rows, columns), stride) {}

  float* data() const { return memory_.data(); }
  int stride() const { return stride_; }
  Floats Read(int rows, int columns) const {
    const std::vector<float> all = memory_.Values();
    Floats x(rows, columns);
    for (int r = 0; r < rows; ++r) std::copy_n(all.begin() + r * stride_, columns, x.values.begin() + r * columns);
    return x;
  }
  // Whether everything but the first `columns` of each row is still NaN.
  bool IsUntouchedBeyond(int columns) const {
    const std::vector<float> all = memory_.Values();
    for (size_t i = 0; i < all.size(); ++i) {
      if (static_cast<int>(i) % stride_ >= columns && !std::isnan(all[i])) return false;
    }
    return true;
  }

 private:
  static Floats NotANumber(int rows, int columns) {
    Floats x(rows, columns);
    std::fill(x.values.begin(), x.values.end(), kNan);
    return x;
  }
  static std::vector<float> Spread(const Floats& x, int stride) {
    std::vector<float> all(static_cast<size_t>(x.rows) * static_cast<size_t>(stride), kNan);
    for (int r = 0; r < x.rows; ++r) std::copy_n(x.values.begin() + r * x.columns, x.columns, all.begin() + r * stride);
    return all;
  }

  int stride_;
  DeviceArray<float> memory_;
};

// Planes of rows: padding to 32 is zero, what is behind it NaN.
class DevicePlanes {
 public:
  // Of unknown content.
  DevicePlanes(int rows, int columns, int planes)
      : rows_(rows), columns_(columns), planes_(planes), stride_(StrideOf(columns)), memory_(Entries()) {}
  DevicePlanes(const Floats& x, int planes, bool for_transposed)
      : rows_(x.rows),
        columns_(x.columns),
        planes_(planes),
        stride_(StrideOf(x.columns)),
        memory_(Split(x, for_transposed)) {}

  ActivationPlanes view() const { return {memory_.data(), int64_t{rows_} * stride_, stride_}; }
  // The sums of the planes, padding included.
  Floats Read(bool for_transposed) const {
    const std::vector<uint16_t> all = memory_.Values();
    Floats x(rows_, static_cast<int>(RoundUp(columns_, 32)));
    for (int r = 0; r < rows_; ++r) {
      for (int c = 0; c < x.columns; ++c) {
        FloatPlanes split{};
        for (int p = 0; p < planes_; ++p) split.planes[p] = all[Index(p, r, c, for_transposed)];
        x(r, c) = FloatOfPlanes(split);
      }
    }
    return x;
  }
  bool IsUntouchedBeyondPadding() const {
    const std::vector<uint16_t> all = memory_.Values();
    for (size_t i = 0; i < all.size(); ++i) {
      if (static_cast<int>(i) % stride_ >= stride_ - 8 && all[i] != 0xffff) return false;
    }
    return true;
  }

 private:
  static int StrideOf(int columns) { return static_cast<int>(RoundUp(columns, 32)) + 8; }
  size_t Entries() const {
    return static_cast<size_t>(planes_) * static_cast<size_t>(rows_) * static_cast<size_t>(stride_);
  }
  std::vector<uint16_t> Split(const Floats& x, bool for_transposed) const {
    std::vector<uint16_t> all = host_cuda::UnknownValues<uint16_t>(Entries());
    for (int r = 0; r < rows_; ++r) {
      for (int c = 0; c < static_cast<int>(RoundUp(columns_, 32)); ++c) {
        const float value = c < columns_ ? x(r, c) : 0;
        const FloatPlanes split = planes_ == 1 ? FloatPlanes{{RoundToBfloat16(value), 0, 0}} : PlanesOfFloat(value);
        for (int p = 0; p < planes_; ++p) all[Index(p, r, c, for_transposed)] = split.planes[p];
      }
    }
    return all;
  }
  size_t Index(int plane, int row, int column, bool for_transposed) const {
    const int at = for_transposed ? column / 32 * 32 + PositionOf(column % 32) : column;
    return (static_cast<size_t>(plane) * static_cast<size_t>(rows_) + static_cast<size_t>(row)) *
               static_cast<size_t>(stride_) +
           static_cast<size_t>(at);
  }

  int rows_, columns_, planes_, stride_;
  DeviceArray<uint16_t> memory_;
};

}  // namespace c3po::cuda

#endif  // C3PO_TESTS_SERVER_COMPUTE_CUDA_DEVICE_ROWS_H_
