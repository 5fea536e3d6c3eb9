// The walk of bfloat16_tiles.h with vectors and tiles of plain loops, held against sums in double; and the processor's
// own units, where it has them.
#include "server/compute/cpu/bfloat16_products.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "tests/server/compute/cpu/instruction_sets.h"
#define C3PO_BFLOAT16_TILES_NAMESPACE checked_tiles
#include "server/compute/cpu/bfloat16_tiles.h"

namespace c3po::cpu {
namespace {

void RoundAll(const float* x, int64_t count, uint16_t* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = RoundedToBfloat16(x[i]);
}

// Tile registers as the processor has them: rows and bytes of each, which every access is checked against.
struct PlainTileUnit {
  struct Tile {
    int64_t rows, bytes;
    std::array<std::array<uint8_t, 64>, 16> data;
  };
  static inline std::array<Tile, 8> tiles = {};

  static void Round(const float* x, int64_t count, uint16_t* out) { RoundAll(x, count, out); }
  static void Configure(int64_t rows, int64_t columns_left) {
    ASSERT_TRUE(rows >= 1 && rows <= 16 && columns_left >= 0 && columns_left < 32 && columns_left % 2 == 0);
    tiles = {};
    const auto set = [](int tile, int64_t tile_rows, int64_t bytes) {
      tiles[tile].rows = tile_rows;
      tiles[tile].bytes = bytes;
    };
    for (int sums = 0; sums < 4; ++sums) set(sums, rows, 64);
    set(4, rows, 64);
    set(5, 16, 64);
    if (columns_left > 0) set(6, rows, columns_left * 2), set(7, columns_left / 2, 64);
  }
  static void Release() { tiles = {}; }
  template <int Q>
  static void ZeroSums() {
    tiles[Q].data = {};
  }
  static void Load(Tile& tile, const void* from, int64_t row_bytes) {
    ASSERT_GT(tile.rows, 0);
    tile.data = {};
    for (int64_t r = 0; r < tile.rows; ++r) {
      std::memcpy(tile.data[r].data(), static_cast<const char*>(from) + r * row_bytes, tile.bytes);
    }
  }
  template <bool kRest>
  static void LoadX(const uint16_t* x, int64_t row_bytes) {
    Load(tiles[kRest ? 6 : 4], x, row_bytes);
  }
  template <int Q, bool kRest>
  static void MultiplyAdd(const uint16_t* w) {
    Tile &sums = tiles[Q], &x = tiles[kRest ? 6 : 4], &weights = tiles[kRest ? 7 : 5];
    Load(weights, w, 64);
    ASSERT_EQ(x.bytes / 4, weights.rows);
    const auto number = [](const Tile& tile, int64_t row, int64_t i) {
      uint16_t bits;
      std::memcpy(&bits, tile.data[row].data() + 2 * i, 2);
      return Widened(bits);
    };
    for (int64_t m = 0; m < sums.rows; ++m) {
      for (int64_t n = 0; n < 16; ++n) {
        float sum;
        std::memcpy(&sum, sums.data[m].data() + 4 * n, 4);
        for (int64_t k = 0; k < weights.rows; ++k) {
          for (int64_t i = 0; i < 2; ++i) sum += number(x, m, 2 * k + i) * number(weights, k, 2 * n + i);
        }
        std::memcpy(sums.data[m].data() + 4 * n, &sum, 4);
      }
    }
  }
  template <int Q>
  static void StoreSums(float* out, int64_t row_bytes) {
    for (int64_t r = 0; r < tiles[Q].rows; ++r) {
      std::memcpy(reinterpret_cast<char*>(out) + r * row_bytes, tiles[Q].data[r].data(), 64);
    }
  }
};

using DotBlock = void (*)(const DotProduct&, int64_t, int64_t, int64_t, int64_t);

template <Bfloat16Unit kUnit>
void RunUnit(const DotProduct& p, int64_t row, int64_t row_end, int64_t begin, int64_t end) {
  PairDotBlock(kUnit, p, row, row_end, begin, end);
}

struct Walk {
  const char* name;
  Bfloat16Unit unit;  // that it needs; kPlain: any processor runs it
  DotBlock run;
};

void PrintTo(const Walk& walk, std::ostream* out) { *out << walk.name; }

// Whether this processor runs the walk: one that has AMX has AVX-512 BF16.
bool Runs(Bfloat16Unit unit) {
  return unit == Bfloat16Unit::kPlain || static_cast<int>(unit) <= static_cast<int>(FastestBfloat16Unit());
}

class Bfloat16Products : public testing::TestWithParam<Walk> {
 protected:
  void SetUp() override {
    if (!Runs(GetParam().unit)) GTEST_SKIP() << "this processor has no " << Bfloat16UnitName(GetParam().unit);
  }
};

INSTANTIATE_TEST_SUITE_P(Units, Bfloat16Products,
                         testing::Values(Walk{"PlainVectors", Bfloat16Unit::kPlain, RunUnit<Bfloat16Unit::kPlain>},
                                         Walk{"PlainTiles", Bfloat16Unit::kPlain,
                                              checked_tiles::DotBlock<checked_tiles::MatrixTiles<PlainTileUnit>>},
                                         Walk{"Avx512", Bfloat16Unit::kAvx512, RunUnit<Bfloat16Unit::kAvx512>},
                                         Walk{"Amx", Bfloat16Unit::kAmx, RunUnit<Bfloat16Unit::kAmx>}),
                         [](const auto& info) { return std::string(info.param.name); });

// Blocks of rows and of panels, columns that are a part of the matrix, rows of x and y by index.
TEST_P(Bfloat16Products, AreTheSumsOfRoundedRowsAndARowIsBitwiseTheSameAlone) {
  constexpr int64_t kWholeColumns = 200, kRows = 41;
  struct Part {
    int64_t n, first_column, columns, begin, end;
  };
  const Part parts[] = {{16, 0, 2, 0, 16},      {16, 0, 32, 0, 16},    {64, 0, 200, 0, 64},
                        {176, 48, 48, 16, 176}, {96, 100, 98, 32, 96}, {80, 2, 34, 0, 80}};
  for (const Part& part : parts) {
    const auto seed = static_cast<uint32_t>(part.n * 1000 + part.columns);
    std::mt19937 rng(seed);
    const Matrix whole(rng, part.n, kWholeColumns, true, WeightLayout::kPairs);
    const WeightView w = whole.view.Columns(part.first_column, part.first_column + part.columns);
    const std::vector<float> x = Random(rng, kRows * part.columns);
    std::vector<int64_t> order(kRows);
    std::iota(order.rbegin(), order.rend(), 0);
    for (const auto& [row, row_end] : {std::pair<int64_t, int64_t>{0, 1}, {0, 7}, {3, 20}, {0, 41}}) {
      SCOPED_TRACE(testing::Message() << "seed " << seed << " n " << part.n << " columns " << part.columns << " rows "
                                      << row << " to " << row_end);
      std::vector<float> y(kRows * part.n, -1), alone(kRows * part.n, -1);
      const RowsView from{x.data(), part.columns, kRows, order.data()};
      GetParam().run({from, w, {y.data(), part.n, order.data()}}, row, row_end, part.begin, part.end);
      for (int64_t m = 0; m < kRows; ++m) {
        const float* got = y.data() + order[m] * part.n;
        if (m >= row && m < row_end) {
          GetParam().run({from, w, {alone.data(), part.n, order.data()}}, m, m + 1, part.begin, part.end);
        }
        ASSERT_EQ(0, std::memcmp(got, alone.data() + order[m] * part.n, part.n * sizeof(float))) << "row " << m;
        for (int64_t j = part.begin; j < part.end && m >= row && m < row_end; ++j) {
          double sum = 0, size = 0;
          for (int64_t k = 0; k < part.columns; ++k) {
            const double product = double{Widened(RoundedToBfloat16(x[order[m] * part.columns + k]))} *
                                   whole.values[j * kWholeColumns + part.first_column + k];
            sum += product, size += std::abs(product);
          }
          ASSERT_NEAR(got[j], sum, 1e-6 * size + 1e-30) << "row " << m << " of W " << j;
        }
      }
    }
  }
}

// What is not a number, or has no finite bfloat16, stays visible; a row beside it is as it was.
TEST_P(Bfloat16Products, RoundToTheNearestWithTiesToEvenAndKeepWhatIsNotANumber) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();
  struct Case {
    float x, rounded;
  };
  const Case cases[] = {{1 + 1.0f / 256, 1},               // half way between 1 and 1 + 2^-7: the even one
                        {1 + 3.0f / 256, 1 + 2.0f / 128},  // half way between the next two: the even one
                        {1 + 1.01f / 256, 1 + 1.0f / 128},
                        {-1 - 3.0f / 256, -1 - 2.0f / 128},
                        {0, 0},
                        {3.4e38f, kInfinity},  // above the largest bfloat16
                        {kInfinity, kInfinity},
                        {kNan, kNan},
                        {-kNan, kNan}};
  std::mt19937 rng(1);
  Matrix w(rng, 16, 2, true, WeightLayout::kPairs);
  std::fill(w.bits.begin(), w.bits.end(), RoundedToBfloat16(1));
  for (const Case& c : cases) {
    const float x[4] = {c.x, 0, 2, 0};
    float y[32];
    GetParam().run({{x, 2, 2, nullptr}, w.view, {y, 16, nullptr}}, 0, 2, 0, 16);
    for (int64_t j = 0; j < 16; ++j) {
      if (std::isnan(c.rounded)) {
        EXPECT_TRUE(std::isnan(y[j])) << c.x;
      } else {
        EXPECT_EQ(y[j], c.rounded) << c.x;
      }
      EXPECT_EQ(y[16 + j], 2);
    }
  }
}

TEST(Bfloat16Unit, HasAName) {
  EXPECT_STREQ(Bfloat16UnitName(Bfloat16Unit::kNone), "none");
  EXPECT_STREQ(Bfloat16UnitName(Bfloat16Unit::kPlain), "plain");
  EXPECT_STREQ(Bfloat16UnitName(Bfloat16Unit::kAvx512), "avx512-bf16");
  EXPECT_STREQ(Bfloat16UnitName(Bfloat16Unit::kAmx), "amx-bf16");
}

TEST(Bfloat16Unit, IsTheProcessorsOwnUnlessATestChooses) {
  const Bfloat16Unit own = FastestBfloat16Unit();
  SetBfloat16UnitForTest(Bfloat16Unit::kPlain);
  EXPECT_EQ(FastestBfloat16Unit(), Bfloat16Unit::kPlain);
  SetBfloat16UnitForTest(Bfloat16Unit::kNone);
  EXPECT_EQ(FastestBfloat16Unit(), Bfloat16Unit::kNone);
  SetBfloat16UnitForTest(std::nullopt);
  EXPECT_EQ(FastestBfloat16Unit(), own);
}

}  // namespace
}  // namespace c3po::cpu
