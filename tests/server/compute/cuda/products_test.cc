#include "server/compute/cuda/products.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "tests/host_cuda/kernel_run.h"
#include "tests/server/compute/cuda/device_rows.h"

namespace c3po::cuda {
namespace {

constexpr int kRowCounts[] = {1, 3, 8, 9, 64, 70};

// y = v W^T, or v W, in double precision, and the sums of its terms' magnitudes. w: what the packed matrix holds.
struct Oracle {
  Floats v, w;
  int planes;
  bool transposed;

  int outputs() const { return transposed ? w.columns : w.rows; }
  int terms() const { return transposed ? w.rows : w.columns; }
  double Sum(int row, int m, bool magnitudes) const {
    double sum = 0;
    for (int k = 0; k < terms(); ++k) {
      const double term = Seen(v(row, k), planes) * double{transposed ? w(k, m) : w(m, k)};
      sum += magnitudes ? std::abs(term) : term;
    }
    return sum;
  }
};

std::string Named(const ProductArgs& args, uint64_t seed) {
  return "M " + std::to_string(args.weights.rows) + " K " + std::to_string(args.weights.columns) + " " +
         Named(Lying{args.weights.bits, args.weights.planes}) + (args.transposed ? " transposed" : "") + " rows " +
         std::to_string(args.rows) + " seed " + std::to_string(seed);
}

// Runs the product into new memory with a gap of NaN behind each row.
Floats Multiply(ProductArgs args, uint64_t seed = 0) {
  const int outputs = args.transposed ? args.weights.columns : args.weights.rows;
  host_cuda::SetSeed(seed);
  const DeviceFloats out(args.rows, outputs, outputs + 3);
  args.out = out.data();
  args.out_stride = out.stride();
  EXPECT_EQ(LaunchProduct(args, nullptr), nullptr) << Named(args, seed);
  EXPECT_TRUE(out.IsUntouchedBeyond(outputs)) << Named(args, seed);
  return out.Read(args.rows, outputs);
}

void ExpectSame(const Floats& a, const Floats& b, const std::string& what) {
  ASSERT_EQ(a.values.size(), b.values.size());
  EXPECT_EQ(std::memcmp(a.values.data(), b.values.data(), a.values.size() * sizeof(float)), 0) << what;
}

void ExpectNear(const Floats& y, const Oracle& oracle, const std::string& what) {
  for (int r = 0; r < y.rows; ++r) {
    for (int m = 0; m < y.columns; ++m) {
      ASSERT_NEAR(y(r, m), oracle.Sum(r, m, false), Tolerance(oracle.planes) * oracle.Sum(r, m, true))
          << what << " row " << r << " output " << m;
    }
  }
}

using Shape = std::pair<int, int>;

TEST(Product, IsThatOfDoublePrecision) {
  std::mt19937 random(1);
  // Less than a tile; odd; sums that all warps share, some of them twice.
  for (const Shape& shape :
       {Shape{5, 7}, Shape{40, 24}, Shape{72, 40}, Shape{24, 600}, Shape{17, 1100}, Shape{600, 24}}) {
    for (const auto& [bits, planes] : kLyings) {
      const Floats w = RandomFloats(shape.first, shape.second, random);
      const DeviceWeights weights(PackedLayout::Plain(w.rows, w.columns, planes).WithBits(bits), w);
      for (const bool transposed : {false, true}) {
        for (const int rows : kRowCounts) {
          if (bits != 16 && (rows == 3 || rows == 8)) continue;  // Each kernel once.
          const Floats v = RandomFloats(rows, transposed ? w.rows : w.columns, random);
          const DevicePlanes in(v, planes, transposed);
          ProductArgs args;
          args.weights = weights.view();
          args.transposed = transposed;
          args.rows = rows;
          args.planes = in.view();
          args.multiprocessors = 3;
          const Floats y = Multiply(args);
          ExpectNear(y, {v, weights.held(), planes, transposed}, Named(args, 0));
        }
      }
    }
  }
}

TEST(Product, IsBitwiseTheSameInEveryOrderOnAnyDeviceAndInAnyBatch) {
  std::mt19937 random(2);
  for (const auto& [bits, planes] : kLyings) {
    for (const bool transposed : {false, true}) {
      const Floats w = RandomFloats(90, 700, random);
      const DeviceWeights weights(PackedLayout::Plain(w.rows, w.columns, planes).WithBits(bits), w);
      const Floats v = RandomFloats(70, transposed ? w.rows : w.columns, random);
      const DevicePlanes in(v, planes, transposed);
      ProductArgs args;
      args.weights = weights.view();
      args.transposed = transposed;
      args.rows = v.rows;
      args.planes = in.view();
      args.multiprocessors = 2;
      const Floats all = Multiply(args);
      for (uint64_t seed = 1; seed < 4; ++seed) ExpectSame(Multiply(args, seed), all, Named(args, seed));
      args.multiprocessors = 132;
      ExpectSame(Multiply(args), all, "132 multiprocessors");
      args.multiprocessors = 2;
      args.rows = 64;
      const Floats few = Multiply(args);
      for (uint64_t seed = 1; seed < 4; ++seed) ExpectSame(Multiply(args, seed), few, Named(args, seed));
      for (const auto& [first, count] :
           {std::pair{0, 1}, {69, 1}, {5, 3}, {30, 8}, {20, 9}, {3, 31}, {1, 33}, {0, 64}}) {
        args.rows = count;
        args.planes.data = in.view().data + int64_t{first} * in.view().stride;
        const Floats some = Multiply(args);
        for (int r = 0; r < count; ++r) {
          ASSERT_EQ(std::memcmp(&some.values[size_t(r * some.columns)], &all.values[size_t((first + r) * all.columns)],
                                size_t(all.columns) * sizeof(float)),
                    0)
              << "row " << first + r << " among " << count << ": " << Named(args, 0);
        }
      }
    }
  }
}

// Rows that the product makes planes of itself, and those that a kernel before it makes planes of, are the same.
TEST(Product, RowsFromFloatsAreTheSameBesideFewAndMany) {
  std::mt19937 random(3);
  constexpr float kEps = 1e-5f;
  for (const auto& [bits, planes] : kLyings) {
    for (const bool transposed : {false, true}) {
      for (const RowSource::Kind kind : {RowSource::kFloats, RowSource::kNormed}) {
        const Floats w = transposed ? RandomFloats(600, 45, random) : RandomFloats(45, 600, random);
        const DeviceWeights weights(PackedLayout::Plain(w.rows, w.columns, planes).WithBits(bits), w);
        const Floats x = RandomFloats(64, 600, random, 3), norm = RandomFloats(1, 600, random);
        const DeviceFloats device_x(x, 603), device_norm(norm, 600);
        std::vector<int> index;
        for (int r = 0; r < 70; ++r) index.push_back(r % 11 == 10 ? -1 : (r * 29) % 64);
        const DeviceArray<int> device_index(index);
        const DevicePlanes scratch(70, 600, planes);
        ProductArgs args;
        args.weights = weights.view();
        args.transposed = transposed;
        args.source.kind = kind;
        args.source.x = device_x.data();
        args.source.stride = device_x.stride();
        args.source.row_index = device_index.data();
        args.source.scale = 0.75f;
        args.source.norm = device_norm.data();
        args.source.eps = kEps;
        args.planes = scratch.view();
        args.multiprocessors = 2;
        args.rows = 70;
        const Floats all = Multiply(args);

        // The rows as they enter: in float32 as the kernel has them, so that they are rounded alike.
        Floats v(70, 600);
        for (int r = 0; r < v.rows; ++r) {
          if (index[size_t(r)] < 0) continue;
          double squares = 0;
          for (int k = 0; k < 600; ++k) squares += double{x(index[size_t(r)], k)} * x(index[size_t(r)], k);
          const double factor = kind == RowSource::kNormed ? 1 / std::sqrt(squares / 600 + double{kEps}) : 0.75;
          for (int k = 0; k < 600; ++k) {
            v(r, k) =
                static_cast<float>(x(index[size_t(r)], k) * factor * (kind == RowSource::kNormed ? norm(0, k) : 1));
          }
        }
        if (planes == 3 || kind == RowSource::kFloats) {
          ExpectNear(all, {v, weights.held(), planes, transposed}, Named(args, 0));
        } else {
          // Now and then the kernel's float32 rounds to the other neighbor.
          const Floats seen = scratch.Read(transposed);
          for (int r = 0; r < v.rows; ++r) {
            for (int k = 0; k < v.columns; ++k) ASSERT_NEAR(seen(r, k), v(r, k), std::abs(v(r, k)) * 0x1p-8);
          }
          ExpectNear(all, {seen, weights.held(), planes, transposed}, Named(args, 0));
        }
        const Floats planes_made = scratch.Read(transposed);
        for (int r = 0; r < v.rows; ++r) {
          for (int k = 600; k < planes_made.columns; ++k) ASSERT_EQ(planes_made(r, k), 0);
        }
        EXPECT_TRUE(scratch.IsUntouchedBeyondPadding());

        for (const auto& [first, count] : {std::pair{0, 1}, {10, 1}, {60, 8}, {7, 9}}) {
          args.rows = count;
          args.source.row_index = device_index.data() + first;
          args.planes = ActivationPlanes{};
          EXPECT_EQ(ProductNeedsPlanes(args), count > 8);
          if (count > 8) args.planes = scratch.view();
          const Floats some = Multiply(args, 5);
          for (int r = 0; r < count; ++r) {
            ASSERT_EQ(std::memcmp(&some.values[size_t(r * some.columns)],
                                  &all.values[size_t((first + r) * all.columns)], size_t(all.columns) * sizeof(float)),
                      0)
                << "row " << first + r << " among " << count << ": " << Named(args, 0);
          }
        }
      }
    }
  }
}

// Rows that are too long for shared memory, and part of longer rows at an odd place.
TEST(Product, NormsPartOfARow) {
  std::mt19937 random(4);
  for (const int width : {40, 7000}) {
    const Floats w = RandomFloats(20, width, random);
    const DeviceWeights weights(PackedLayout::Plain(w.rows, w.columns, 3), w);
    const Floats x = RandomFloats(3, width + 20, random), norm = RandomFloats(1, width, random);
    const DeviceFloats device_x(x, width + 20), device_norm(norm, width);
    const DevicePlanes scratch(3, width, 3);
    ProductArgs args;
    args.weights = weights.view();
    args.rows = 3;
    args.source.kind = RowSource::kNormed;
    args.source.x = device_x.data() + 13;
    args.source.stride = device_x.stride();
    args.source.norm = device_norm.data();
    args.source.eps = 1e-6f;
    args.planes = scratch.view();
    EXPECT_EQ(ProductNeedsPlanes(args), width == 7000);
    const Floats y = Multiply(args);
    Floats v(3, width);
    for (int r = 0; r < 3; ++r) {
      double squares = 0;
      for (int k = 0; k < width; ++k) squares += double{x(r, 13 + k)} * x(r, 13 + k);
      for (int k = 0; k < width; ++k) {
        v(r, k) = static_cast<float>(x(r, 13 + k) / std::sqrt(squares / width + 1e-6) * norm(0, k));
      }
    }
    ExpectNear(y, {v, w, 3, false}, Named(args, 0));
  }
}

TEST(Product, AddsBiasDividesClipsAndAddsToTheResidual) {
  std::mt19937 random(5);
  const Floats w = RandomFloats(40, 24, random), v = RandomFloats(9, 24, random), bias = RandomFloats(1, 40, random, 3);
  const Floats residual = RandomFloats(9, 40, random, 10);
  const DeviceWeights weights(PackedLayout::Plain(40, 24, 3), w);
  const DevicePlanes in(v, 3, false);
  const DeviceFloats device_bias(bias, 40), stream(residual, 47);
  ProductArgs args;
  args.weights = weights.view();
  args.rows = 9;
  args.planes = in.view();
  const Floats product = Multiply(args);
  args.bias = device_bias.data();
  args.divisor = 3;
  args.clip = 1.5f;
  args.clip_begin = 30;
  args.factor = 0.22f;
  args.residual = stream.data();
  args.residual_stride = stream.stride();
  const Floats apart = Multiply(args);
  // In place.
  args.out = stream.data();
  args.out_stride = stream.stride();
  ASSERT_EQ(LaunchProduct(args, nullptr), nullptr);
  EXPECT_TRUE(stream.IsUntouchedBeyond(40));
  ExpectSame(stream.Read(9, 40), apart, "in place");
  int clipped = 0;
  for (int r = 0; r < 9; ++r) {
    for (int m = 0; m < 40; ++m) {
      double y = (double{product(r, m)} + bias(0, m)) / 3;
      if (m >= 30 && std::abs(y) > 1.5) ++clipped;
      if (m >= 30) y = std::min(std::max(y, -1.5), 1.5);
      EXPECT_NEAR(apart(r, m), residual(r, m) + 0.22 * y, 1e-5);
    }
  }
  EXPECT_GT(clipped, 0);
}

TEST(Product, ClipKeepsWhatIsNotANumber) {
  Floats w(16, 16), v(1, 16);
  w(3, 0) = kNan;
  v(0, 0) = 1;
  const DeviceWeights weights(PackedLayout::Plain(16, 16, 1), w);
  const DevicePlanes in(v, 1, false);
  ProductArgs args;
  args.weights = weights.view();
  args.rows = 1;
  args.planes = in.view();
  args.clip = 1;
  const Floats y = Multiply(args);
  for (int m = 0; m < 16; ++m) EXPECT_EQ(std::isnan(y(0, m)), m == 3);
}

// Attention's splits. Two rows of different lengths; a row of length 0; splits behind the last are NaN.
struct SplitValues {
  std::vector<float> partial, tops, sums;
  std::vector<int> lengths;
  Floats merged;

  SplitValues(int rows, int heads, int splits, int value_dim, int split_length, std::mt19937& random)
      : partial(host_cuda::UnknownValues<float>(size_t(rows) * heads * splits * value_dim)),
        tops(host_cuda::UnknownValues<float>(size_t(rows) * heads * splits)),
        sums(tops),
        lengths(size_t(rows)),
        merged(rows, heads * value_dim) {
    std::normal_distribution<float> normal;
    for (int row = 0; row < rows; ++row) {
      const int used = row == 2 ? 0 : 1 + row % splits;
      lengths[size_t(row)] = used == 0 ? 0 : (used - 1) * split_length + 1 + row % split_length;
      for (int head = 0; head < heads; ++head) {
        const size_t at = (size_t(row) * size_t(heads) + size_t(head)) * size_t(splits);
        double top = -1e30, sum = 0;
        for (size_t i = at; i < at + size_t(used); ++i) {
          tops[i] = 8 * normal(random);
          sums[i] = 1 + std::abs(normal(random));
          top = std::max(top, double{tops[i]});
          for (int j = 0; j < value_dim; ++j) partial[i * size_t(value_dim) + size_t(j)] = normal(random);
        }
        for (size_t i = at; i < at + size_t(used); ++i) sum += std::exp(tops[i] - top) * sums[i];
        for (int j = 0; j < value_dim; ++j) {
          double total = 0;
          for (size_t i = at; i < at + size_t(used); ++i) {
            total += std::exp(tops[i] - top) * partial[i * size_t(value_dim) + size_t(j)];
          }
          merged(row, head * value_dim + j) = used == 0 ? 0 : static_cast<float>(total / sum);
        }
      }
    }
  }
};

struct Splits {
  int heads, splits, value_dim, split_length;
  DeviceArray<float> partial, tops, sums;
  DeviceArray<int> lengths;
  Floats merged;

  Splits(int r, int h, int s, int v, int length, std::mt19937& random)
      : Splits(h, s, v, length, SplitValues(r, h, s, v, length, random)) {}
  Splits(int h, int s, int v, int length, const SplitValues& values)
      : heads(h),
        splits(s),
        value_dim(v),
        split_length(length),
        partial(values.partial),
        tops(values.tops),
        sums(values.sums),
        lengths(values.lengths),
        merged(values.merged) {}
  RowSource source() const {
    RowSource source;
    source.kind = RowSource::kMerged;
    source.partial = partial.data();
    source.tops = tops.data();
    source.sums = sums.data();
    source.lengths = lengths.data();
    source.heads = heads;
    source.splits = splits;
    source.value_dim = value_dim;
    source.split_length = split_length;
    return source;
  }
};

TEST(Product, MergesTheSplitsOfAttention) {
  std::mt19937 random(6);
  for (const int value_dim : {8, 6}) {
    const Splits splits(12, 5, 6, value_dim, 16, random);
    const int width = 5 * value_dim;
    const Floats w = RandomFloats(24, width, random);
    const DeviceWeights weights(PackedLayout::Plain(24, width, 3), w);
    const DevicePlanes scratch(12, width, 3);
    ProductArgs args;
    args.weights = weights.view();
    args.source = splits.source();
    args.planes = scratch.view();
    args.rows = 12;
    const Floats all = Multiply(args);
    const Oracle oracle{splits.merged, w, 3, false};
    for (int r = 0; r < 12; ++r) {
      for (int m = 0; m < 24; ++m) ASSERT_NEAR(all(r, m), oracle.Sum(r, m, false), 4e-6 * oracle.Sum(r, m, true));
    }
    // What a zero row gives is zero, not the quotient of two.
    for (int m = 0; m < 24; ++m) EXPECT_EQ(all(2, m), 0);
    for (const int rows : {1, 2, 8}) {
      args.rows = rows;
      EXPECT_EQ(ProductNeedsPlanes(args), rows == 8);
      const Floats some = Multiply(args, 1);
      ASSERT_EQ(std::memcmp(some.values.data(), all.values.data(), some.values.size() * sizeof(float)), 0) << rows;
    }
  }
}

}  // namespace
}  // namespace c3po::cuda
