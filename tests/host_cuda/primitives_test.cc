// Every primitive of device.h against plain loops, on whichever runtime the program opens: the execution model's or a
// GPU's. The layouts of fragments are those of "PTX ISA", sections on mma.m16n8k16, movmatrix and ldmatrix.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "tests/gpu/runtime_contract.h"
#include "tests/host_cuda/primitive_kernels.h"

namespace c3po::host_cuda {
namespace {

using ::testing::Each;

constexpr int kRuns = 5;  // in other orders, where the runtime has such

class Primitives : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string why;
    runtime_ = OpenTestedRuntime(&why);
    if (runtime_ == nullptr) GTEST_SKIP() << why;
    ASSERT_STREQ(runtime_->NewStream(&stream_), nullptr);
  }

  void TearDown() override {
    if (runtime_ == nullptr) return;
    for (void* memory : allocated_) EXPECT_STREQ(runtime_->Free(memory), nullptr);
    EXPECT_STREQ(runtime_->DeleteStream(stream_), nullptr);
  }

  template <class T>
  T* Device(const std::vector<T>& values) {
    void* memory = nullptr;
    const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
    EXPECT_STREQ(runtime_->Allocate(bytes, &memory), nullptr);
    EXPECT_STREQ(runtime_->CopyToDevice(stream_, memory, values.data(), bytes), nullptr);
    EXPECT_STREQ(runtime_->Synchronize(stream_), nullptr);
    allocated_.push_back(memory);
    return static_cast<T*>(memory);
  }

  template <class T>
  std::vector<T> Host(const T* device, size_t count) {
    std::vector<T> values(count);
    EXPECT_STREQ(runtime_->CopyToHost(stream_, values.data(), device, static_cast<int64_t>(count * sizeof(T))),
                 nullptr);
    EXPECT_STREQ(runtime_->Synchronize(stream_), nullptr);
    return values;
  }

  cuda::Runtime* runtime_ = nullptr;
  cuda::Stream stream_ = nullptr;
  std::vector<void*> allocated_;
};

float Widen(uint32_t bfloat16) { return std::bit_cast<float>(bfloat16 << 16); }

TEST_F(Primitives, ThreadsKnowTheirPlace) {
  constexpr int kX = 3, kY = 2, kZ = 2, kThreads = 64;
  int* const out = Device(std::vector<int>(kX * kY * kZ * kThreads * kPlaces, -1));
  ASSERT_STREQ(LaunchPlaces({out}, kX, kY, kZ, kThreads, stream_), nullptr);
  std::vector<int> expected;
  for (int z = 0; z < kZ; ++z) {
    for (int y = 0; y < kY; ++y) {
      for (int x = 0; x < kX; ++x) {
        for (int t = 0; t < kThreads; ++t) {
          const int places[kPlaces] = {t, kThreads, t % 32, t / 32, kThreads / 32, x, kX, y, kY, z, kZ};
          expected.insert(expected.end(), places, places + kPlaces);
        }
      }
    }
  }
  EXPECT_EQ(Host(out, expected.size()), expected);
}

TEST_F(Primitives, ShufflesTakeFromTheLaneTheyName) {
  std::vector<float> value(32);
  std::vector<double> wide(32);
  std::vector<int> from(32);
  for (size_t i = 0; i < 32; ++i) {
    value[i] = static_cast<float>(i) + 0.5f;
    wide[i] = static_cast<double>(i) + 1e-9;
    from[i] = static_cast<int>(7 * i + 40);  // modulo 32
  }
  float* const out = Device(std::vector<float>(kShuffles * 32));
  double* const wide_out = Device(std::vector<double>(kShuffles * 32));
  const ShuffleArgs args{Device(value), Device(wide), Device(from), 0, out, wide_out};
  for (int by = 0; by < 32; ++by) {
    ShuffleArgs shuffled = args;
    shuffled.by = by;
    ASSERT_STREQ(LaunchShuffles(shuffled, stream_), nullptr);
    const std::vector<float> got = Host(out, kShuffles * 32);
    const std::vector<double> wide_got = Host(wide_out, kShuffles * 32);
    for (int i = 0; i < 32; ++i) {
      const int sources[kShuffles] = {(7 * i + 40) % 32, i ^ by, i + by < 32 ? i + by : i, i - by >= 0 ? i - by : i};
      for (int j = 0; j < kShuffles; ++j) {
        const auto source = static_cast<size_t>(sources[j]), at = static_cast<size_t>(32 * j + i);
        EXPECT_EQ(got[at], value[source]) << "shuffle " << j << " by " << by << " in lane " << i;
        EXPECT_EQ(wide_got[at], wide[source]) << "shuffle " << j << " by " << by << " in lane " << i;
      }
    }
  }
}

TEST_F(Primitives, VotesAreOfAllLanes) {
  uint32_t* const out = Device(std::vector<uint32_t>(96));
  for (const uint32_t votes : {0u, 1u, 1u << 31, 0x12345678u, ~1u, ~0u}) {
    ASSERT_STREQ(LaunchVotes({votes, out}, stream_), nullptr);
    const std::vector<uint32_t> got = Host(out, 96);
    for (size_t i = 0; i < 32; ++i) {
      EXPECT_EQ(got[i], votes);
      EXPECT_EQ(got[32 + i], votes != 0);
      EXPECT_EQ(got[64 + i], votes == ~0u);
    }
  }
}

// Where element i of a lane's fragment lies: a[i / 2], its half i % 2.
struct Element {
  size_t row, column;
};
Element OfA(size_t lane, size_t i) { return {lane / 4 + (i % 4 < 2 ? 0 : 8), lane % 4 * 2 + i % 2 + (i < 4 ? 0 : 8)}; }
Element OfB(size_t lane, size_t i) { return {lane % 4 * 2 + i % 2 + (i < 2 ? 0 : 8), lane / 4}; }
Element OfD(size_t lane, size_t i) { return {lane / 4 + (i < 2 ? 0 : 8), lane % 4 * 2 + i % 2}; }

TEST_F(Primitives, MatricesLieInRegistersAsInPtx) {
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  const auto bits = [&] { return std::bit_cast<uint32_t>(normal(random)) >> 16; };
  for (int run = 0; run < kRuns; ++run) {
    uint32_t a[16][16], b[16][8], tile[8][8], stored[4][8][8];
    float d[16][8];
    for (auto& row : a) std::generate(row, row + 16, bits);
    for (auto& row : b) std::generate(row, row + 8, bits);
    for (auto& row : d) std::generate(row, row + 8, [&] { return normal(random); });
    uint32_t next = 1;
    for (auto& row : tile) std::generate(row, row + 8, [&] { return next++; });
    for (auto& matrix : stored) {
      for (auto& row : matrix) std::generate(row, row + 8, [&] { return next++; });
    }
    std::vector<uint32_t> a_words(128), b_words(64), tile_words(32), rows(128);
    std::vector<float> d_words(128);
    for (size_t lane = 0; lane < 32; ++lane) {
      for (size_t i = 0; i < 8; ++i)
        a_words[4 * lane + i / 2] |= a[OfA(lane, i).row][OfA(lane, i).column] << (16 * (i % 2));
      for (size_t i = 0; i < 4; ++i)
        b_words[2 * lane + i / 2] |= b[OfB(lane, i).row][OfB(lane, i).column] << (16 * (i % 2));
      for (size_t i = 0; i < 4; ++i) d_words[4 * lane + i] = d[OfD(lane, i).row][OfD(lane, i).column];
      const size_t g = lane / 4, t = lane % 4;
      tile_words[lane] = tile[g][2 * t] | tile[g][2 * t + 1] << 16;
      for (size_t i = 0; i < 4; ++i) {
        const uint32_t* const row = stored[lane / 8][lane % 8];
        rows[4 * lane + i] = row[2 * i] | row[2 * i + 1] << 16;
      }
    }
    float* const device_d = Device(d_words);
    uint32_t* const transposed = Device(std::vector<uint32_t>(32));
    uint32_t* const loaded = Device(std::vector<uint32_t>(128));
    ASSERT_STREQ(LaunchMatrices(
                     {Device(a_words), Device(b_words), device_d, Device(tile_words), transposed, Device(rows), loaded},
                     stream_),
                 nullptr);
    const std::vector<float> product = Host(device_d, 128);
    const std::vector<uint32_t> turned = Host(transposed, 32), matrices = Host(loaded, 128);
    for (size_t lane = 0; lane < 32; ++lane) {
      const size_t g = lane / 4, t = lane % 4;
      for (size_t i = 0; i < 4; ++i) {
        const auto [row, column] = OfD(lane, i);
        double sum = d[row][column], size = std::abs(sum);
        for (size_t k = 0; k < 16; ++k) {
          sum += double{Widen(a[row][k])} * double{Widen(b[k][column])};
          size += std::abs(double{Widen(a[row][k])} * double{Widen(b[k][column])});
        }
        EXPECT_NEAR(product[4 * lane + i], sum, 1e-6 * size) << "lane " << lane << ", register " << i;
        EXPECT_EQ(matrices[4 * lane + i], stored[i][g][2 * t] | stored[i][g][2 * t + 1] << 16)
            << "lane " << lane << ", matrix " << i;
      }
      EXPECT_EQ(turned[lane], tile[2 * t][g] | tile[2 * t + 1][g] << 16) << "lane " << lane;
    }
  }
}

TEST_F(Primitives, CopiesLandOnceWaitedFor) {
  std::vector<uint32_t> in(512);
  std::iota(in.begin(), in.end(), 1000u);
  std::vector<uint32_t> expected = in;
  for (size_t t = 1; t < 64; t += 2) std::fill_n(expected.begin() + static_cast<ptrdiff_t>(256 + 4 * t), 4, 0u);
  const uint32_t* const device = Device(in);
  for (int run = 0; run < kRuns; ++run) {
    uint32_t* const out = Device(std::vector<uint32_t>(512, 7u));
    ASSERT_STREQ(LaunchCopies({device, out}, stream_), nullptr);
    EXPECT_EQ(Host(out, 512), expected);
  }
}

TEST_F(Primitives, SmallCopiesLandOnceWaitedFor) {
  std::vector<uint32_t> in(192);
  std::iota(in.begin(), in.end(), 1000u);
  std::vector<uint32_t> expected = in;
  for (size_t t = 0; t < 64; t += 3) expected[2 * t] = expected[2 * t + 1] = expected[128 + t] = 0;
  const uint32_t* const device = Device(in);
  for (int run = 0; run < kRuns; ++run) {
    uint32_t* const out = Device(std::vector<uint32_t>(192, 7u));
    ASSERT_STREQ(LaunchSmallCopies({device, out}, stream_), nullptr);
    EXPECT_EQ(Host(out, 192), expected);
  }
}

// Against the difference in double, rounded to the nearest bfloat16, of ties the even one.
TEST_F(Primitives, PairsAreSubtractedAndRoundedOnce) {
  const auto widen = [](uint32_t half) { return double{std::bit_cast<float>(half << 16)}; };
  const auto nearest = [&](double x) {
    const uint32_t below = std::bit_cast<uint32_t>(static_cast<float>(x)) >> 16;
    uint32_t best = below == 0 ? 0 : below - 1;
    for (uint32_t other = best + 1; other <= below + 1; ++other) {
      const double off = std::abs(widen(other) - x), least = std::abs(widen(best) - x);
      if (off < least || (off == least && other % 2 == 0)) best = other;
    }
    return best;
  };
  std::vector<uint32_t> a, b, expected;
  uint32_t state = 1;
  const auto half = [&] {  // of magnitudes from 2^-10 to 2^10
    state = state * 1664525u + 1013904223u;
    return (state >> 31) << 15 | (117 + state / 65536 % 21) << 7 | (state >> 9 & 127);
  };
  for (int i = 0; i < 2000; ++i) {
    const uint32_t low[2] = {half(), half()}, high[2] = {half(), half()};
    a.push_back(low[0] | high[0] << 16);
    b.push_back(low[1] | high[1] << 16);
    expected.push_back(nearest(widen(low[0]) - widen(low[1])) | nearest(widen(high[0]) - widen(high[1])) << 16);
  }
  for (uint32_t n = 0; n < 128; ++n) {  // What levels of weights are made of: 128 + n less 128 and 136.
    a.push_back(0x43004300u | n | n << 16);
    b.push_back(0x43084300u);
    expected.push_back(nearest(n) | nearest(static_cast<double>(n) - 8) << 16);
  }
  uint32_t* const out = Device(std::vector<uint32_t>(a.size()));
  ASSERT_STREQ(LaunchPairs({Device(a), Device(b), out, static_cast<int>(a.size())}, stream_), nullptr);
  EXPECT_EQ(Host(out, a.size()), expected);
}

TEST_F(Primitives, AtomicsLoseNothing) {
  constexpr uint32_t kSum = 95 * 96 / 2;
  for (int run = 0; run < kRuns; ++run) {
    int* const signed_words = Device(std::vector<int>{-5, -100, 100, -1});
    uint32_t* const words = Device(std::vector<uint32_t>{0, 0, 1000, 0, ~0u, 1000, 0, 0, 0});
    uint64_t* const wide_words = Device(std::vector<uint64_t>{1, 0, ~0ull, 5, 0});
    uint32_t* const old = Device(std::vector<uint32_t>(96, 1000u));
    ASSERT_STREQ(LaunchAtomics({signed_words, words, wide_words, old}, stream_), nullptr);
    const std::vector<int> of_int = Host(signed_words, 4);
    EXPECT_EQ(of_int[0], static_cast<int>(kSum) - 5);
    EXPECT_EQ(of_int[1], 47);
    EXPECT_EQ(of_int[2], -48);
    EXPECT_LT(static_cast<unsigned>(of_int[3]), 96u);
    const std::vector<uint32_t> of_word = Host(words, 9);
    EXPECT_EQ((std::vector<uint32_t>{of_word[0], of_word[1], of_word[2], of_word[3], of_word[4]}),
              (std::vector<uint32_t>{kSum, 95, 0, ~0u, 0}));
    EXPECT_LT(of_word[5], 96u);
    EXPECT_EQ(of_word[6], 1u);
    EXPECT_EQ(of_word[7], 2u) << "of each width one thread is the first";
    const std::vector<uint64_t> wide = Host(wide_words, 5);
    EXPECT_EQ(wide[0], (uint64_t{kSum} << 32) + 1);
    EXPECT_EQ(wide[1], uint64_t{95} << 32);
    EXPECT_EQ(wide[2], 0u);
    EXPECT_LT(wide[3] >> 32, 96u);
    EXPECT_EQ(wide[4], uint64_t{1} << 40);
    std::vector<uint32_t> found = Host(old, 96), all(96);
    std::iota(all.begin(), all.end(), 0u);
    std::sort(found.begin(), found.end());
    EXPECT_EQ(found, all);
  }
}

TEST_F(Primitives, ArithmeticIsRoundedOnce) {
  constexpr size_t kCount = 4000;
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> a(kCount), b(kCount), c(kCount);
  for (size_t i = 0; i < kCount; ++i) {
    a[i] = normal(random);
    b[i] = std::abs(normal(random)) + 1e-3f;
    c[i] = -a[i] * b[i];  // What is left of a fused product is its rounding.
  }
  float* const out = Device(std::vector<float>(kFunctions * kCount));
  ASSERT_STREQ(LaunchArithmetic({Device(a), Device(b), Device(c), out, static_cast<int>(kCount)}, stream_), nullptr);
  const std::vector<float> got = Host(out, kFunctions * kCount);
  for (size_t i = 0; i < kCount; ++i) {
    const double x = a[i], y = b[i];
    const double exact[kFunctions] = {x + y,       x - y,        x * y,
                                      x / y,       std::sqrt(y), x * y + double{c[i]},
                                      std::exp(x), std::log(y),  1 / std::sqrt(y),
                                      std::sin(x), std::cos(x)};
    for (size_t j = 0; j < kFunctions; ++j) {
      const auto rounded = static_cast<float>(exact[j]);
      const float value = got[j * kCount + i];
      if (j < 6) {
        EXPECT_EQ(value, rounded) << "function " << j << " of " << x << ", " << y;
      } else {
        const double ulp =
            std::nextafter(std::abs(rounded), std::numeric_limits<float>::infinity()) - std::abs(rounded);
        EXPECT_NEAR(value, exact[j], 2 * ulp) << "function " << j << " of " << x << ", " << y;
      }
    }
  }
}

// The nearest of all `widened` finite values (of ascending bits, from 0 to `last`), of two the even one.
uint16_t NearestBits(float x, const float* widened, uint16_t last) {
  const float magnitude = std::abs(x);
  const float* const above = std::lower_bound(widened, widened + last + 1, magnitude);
  auto bits = static_cast<uint16_t>(above - widened);
  if (bits > 0 && *above != magnitude) {
    const double below = double{magnitude} - double{above[-1]}, over = double{above[0]} - double{magnitude};
    if (below < over || (below == over && bits % 2 == 1)) --bits;
  }
  return static_cast<uint16_t>(bits | (std::signbit(x) ? 0x8000 : 0));
}

TEST_F(Primitives, SmallFloatsAreRoundedToTheNearestEven) {
  std::vector<float> x{0.0f, -0.0f, 1.0f, 65504.0f, 1e-8f, 5.9604645e-8f, 2.9802322e-8f, 6.1e-5f, -3.5e4f, 1e-39f};
  std::mt19937 random(5);
  for (int i = 0; i < 2000; ++i) {
    const auto sixteen = static_cast<uint32_t>(random());
    x.push_back(std::bit_cast<float>((sixteen & 0x83ffffffu) | 0x3c000000u));  // around 1
    x.push_back(std::bit_cast<float>((sixteen & 0x81ff0000u) | 0x3e008000u));  // half way between two bfloat16
    x.push_back(std::bit_cast<float>((sixteen & 0x81ffe000u) | 0x3e001000u));  // half way between two float16
    x.push_back(std::bit_cast<float>((sixteen & 0x807fffffu) | 0x33800000u));  // below the normal float16
  }
  const size_t n = x.size();
  uint16_t* const bfloat16 = Device(std::vector<uint16_t>(n));
  uint16_t* const float16 = Device(std::vector<uint16_t>(n));
  uint32_t* const packed = Device(std::vector<uint32_t>(n));
  float* const widened = Device(std::vector<float>(2 * 65536));
  uint32_t* const bits = Device(std::vector<uint32_t>(n));
  int* const counts = Device(std::vector<int>(2 * n));
  ASSERT_STREQ(LaunchBits({Device(x), static_cast<int>(n), bfloat16, float16, packed, widened, bits, counts}, stream_),
               nullptr);
  const std::vector<float> wide = Host(widened, 2 * 65536);
  for (uint32_t i = 0; i < 65536; ++i) {
    const float of_bfloat16 = std::bit_cast<float>(i << 16);
    const int exponent = static_cast<int>(i >> 10 & 31), fraction = static_cast<int>(i & 1023);
    float of_float16 =
        std::ldexp(static_cast<float>(exponent == 0 ? fraction : 1024 + fraction), std::max(exponent, 1) - 25);
    if (exponent == 31) of_float16 = fraction == 0 ? std::numeric_limits<float>::infinity() : std::nanf("");
    if (i >= 0x8000) of_float16 = -of_float16;
    if (std::isnan(of_bfloat16)) {
      EXPECT_TRUE(std::isnan(wide[i]));
    } else {
      EXPECT_EQ(std::bit_cast<uint32_t>(wide[i]), i << 16);
    }
    if (std::isnan(of_float16)) {
      EXPECT_TRUE(std::isnan(wide[65536 + i]));
    } else {
      ASSERT_EQ(std::bit_cast<uint32_t>(wide[65536 + i]), std::bit_cast<uint32_t>(of_float16)) << i;
    }
  }
  const std::vector<uint16_t> got_bfloat16 = Host(bfloat16, n), got_float16 = Host(float16, n);
  const std::vector<uint32_t> got_packed = Host(packed, n), got_bits = Host(bits, n);
  const std::vector<int> got_counts = Host(counts, 2 * n);
  for (size_t i = 0; i < n; ++i) {
    const uint16_t expected = NearestBits(x[i], wide.data(), 0x7f7f);
    EXPECT_EQ(got_bfloat16[i], expected) << x[i];
    EXPECT_EQ(got_float16[i], NearestBits(x[i], wide.data() + 65536, 0x7bff)) << x[i];
    EXPECT_EQ(got_packed[i], uint32_t{expected} | (uint32_t{expected} ^ 0x8000) << 16) << x[i];
    const uint32_t of_float = std::bit_cast<uint32_t>(x[i]);
    EXPECT_EQ(got_bits[i], of_float);
    EXPECT_EQ(got_counts[i], std::popcount(of_float | 1u << 31));
    EXPECT_EQ(got_counts[n + i], std::countr_zero(of_float | 1u << 31));
  }
}

TEST_F(Primitives, SmallFloatsOverflowAndKeepNan) {
  const float huge = 3.4e38f, nan = std::nanf("");
  const std::vector<float> x{huge, -huge, 65520.0f, 65519.0f, nan, std::numeric_limits<float>::infinity()};
  uint16_t* const bfloat16 = Device(std::vector<uint16_t>(6));
  uint16_t* const float16 = Device(std::vector<uint16_t>(6));
  ASSERT_STREQ(LaunchBits({Device(x), 6, bfloat16, float16, Device(std::vector<uint32_t>(6)),
                           Device(std::vector<float>(2 * 65536)), Device(std::vector<uint32_t>(6)),
                           Device(std::vector<int>(12))},
                          stream_),
               nullptr);
  EXPECT_EQ(Host(bfloat16, 6), (std::vector<uint16_t>{0x7f80, 0xff80, 0x4780, 0x4780, 0x7fff, 0x7f80}));
  EXPECT_EQ(Host(float16, 6), (std::vector<uint16_t>{0x7c00, 0xfc00, 0x7c00, 0x7bff, 0x7fff, 0x7c00}));
}

}  // namespace
}  // namespace c3po::host_cuda
