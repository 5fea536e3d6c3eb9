// The scans against ExactIndex's own order over SquaredDistance: the same labels and the same bits, in every order of
// threads and blocks.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "index/search/cuda/narrow.h"
#include "index/search/cuda/scan.h"
#include "index/search/distance.h"
#include "tests/host_cuda/device_array.h"
#include "tests/host_cuda/kernel_run.h"

namespace c3po {
namespace {

using cuda::FoundRow;
using host_cuda::DeviceArray;

uint32_t BitsOf(float value) {
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

using Found = std::vector<std::pair<uint32_t, int64_t>>;  // squared's bits, label

// Rows, labels and queries on the host, from which tests compute what is right.
struct Problem {
  int dimension = 0;
  int segments = 1;
  std::vector<std::vector<float>> rows;  // [segments * dimension] each
  std::vector<int64_t> labels;
  std::vector<bool> admitted;
  std::vector<std::vector<float>> queries;  // [chosen.size() * dimension]
  std::vector<int> chosen = {0};            // segments

  int count() const { return static_cast<int>(rows.size()); }
};

Problem RandomProblem(uint32_t seed, int count, int dimension, int queries, int segments = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Problem problem;
  problem.dimension = dimension;
  problem.segments = segments;
  const auto vector = [&](int size) {
    std::vector<float> values(static_cast<size_t>(size));
    for (float& value : values) value = normal(random);
    return values;
  };
  for (int i = 0; i < count; ++i) {
    problem.rows.push_back(vector(segments * dimension));
    problem.labels.push_back(int64_t{i} * 7919 % count - count / 2);
    problem.admitted.push_back(true);
  }
  for (int i = 0; i < queries; ++i) problem.queries.push_back(vector(dimension));
  return problem;
}

Found Oracle(const Problem& problem, size_t query, int k) {
  const auto width = static_cast<size_t>(problem.dimension);
  Found all;
  for (size_t row = 0; row < problem.rows.size(); ++row) {
    if (!problem.admitted[row]) continue;
    float squared = 0;
    for (size_t c = 0; c < problem.chosen.size(); ++c) {
      const size_t segment = static_cast<size_t>(problem.chosen[c]);
      squared += SquaredDistance(&problem.queries[query][c * width], &problem.rows[row][segment * width], width);
    }
    all.emplace_back(BitsOf(squared), problem.labels[row]);
  }
  std::sort(all.begin(), all.end());
  if (all.size() > static_cast<size_t>(k)) all.resize(static_cast<size_t>(k));
  return all;
}

// The problem as it lies in device memory: exact sizes, NaN in padding and behind the last row.
struct ProblemLayout {
  explicit ProblemLayout(const Problem& problem)
      : segment_stride(cuda::RoundUp(problem.dimension, 4)),
        row_stride(problem.segments * segment_stride),
        query_stride(static_cast<int>(problem.chosen.size()) * segment_stride),
        rows(host_cuda::UnknownValues<float>(static_cast<size_t>((problem.count() + 3) * row_stride))),
        queries(host_cuda::UnknownValues<float>(problem.queries.size() * static_cast<size_t>(query_stride))),
        admitted(static_cast<size_t>(problem.count() + 31) / 32, 0xffffffffu) {  // Also behind the last row.
    const auto width = static_cast<size_t>(problem.dimension);
    const auto copy = [&](const std::vector<float>& from, float* to) {
      for (size_t i = 0; i < from.size(); i += width, to += segment_stride) std::copy_n(from.begin() + i, width, to);
    };
    for (size_t i = 0; i < problem.rows.size(); ++i) copy(problem.rows[i], rows.data() + i * row_stride);
    for (size_t i = 0; i < problem.queries.size(); ++i) copy(problem.queries[i], queries.data() + i * query_stride);
    for (size_t i = 0; i < problem.rows.size(); ++i) {
      if (!problem.admitted[i]) admitted[i / 32] &= ~(1u << (i % 32));
    }
    for (const int segment : problem.chosen) starts.push_back(segment * segment_stride);
  }

  int segment_stride, row_stride, query_stride;
  std::vector<float> rows, queries;
  std::vector<uint32_t> admitted;
  std::vector<int> starts;
};

class OnDevice {
 public:
  explicit OnDevice(const Problem& problem) : OnDevice(problem, ProblemLayout(problem)) {}
  OnDevice(const Problem& problem, const ProblemLayout& layout)
      : row_stride_(layout.row_stride),
        labels_(problem.labels),
        rows_(layout.rows),
        device_labels_(problem.labels),
        admitted_(layout.admitted),
        starts_(layout.starts),
        queries_(layout.queries) {
    args_.rows = rows_.data();
    args_.admitted = admitted_.data();
    args_.labels = device_labels_.data();
    args_.row_count = problem.count();
    args_.row_stride = row_stride_;
    args_.segment_starts = starts_.data();
    args_.segments = static_cast<int>(problem.chosen.size());
    args_.dimension = problem.dimension;
    args_.queries = queries_.data();
    args_.query_count = static_cast<int>(problem.queries.size());
    args_.query_stride = layout.query_stride;
  }

  std::vector<Found> Scan(int k, int blocks, int at_once) {
    const DeviceArray<uint64_t> lists(static_cast<size_t>(args_.query_count * blocks * k));
    const DeviceArray<FoundRow> found(static_cast<size_t>(args_.query_count * k));
    cuda::ScanArgs args = Args(k, blocks, at_once);
    args.lists = lists.data();
    args.found = found.data();
    EXPECT_EQ(cuda::LaunchScan(args, nullptr), nullptr);
    static_cast<void>(lists.Values());
    return Read(found, k);
  }

  struct HalfResult {
    std::vector<Found> found;
    std::vector<uint32_t> unproven;
  };
  // `error` overstates or understates what rounding to float16 loses.
  HalfResult HalfScan(const Problem& problem, int k, int kept, int blocks, int at_once, double error_factor = 1) {
    const int half_stride = cuda::RoundUp(problem.dimension, cuda::kHalfRowMultiple);
    const DeviceArray<uint16_t> halves(static_cast<size_t>(problem.count() * half_stride));
    cuda::NarrowArgs narrow{rows_.data(), row_stride_, problem.dimension, halves.data(),
                            half_stride,  0,           problem.count()};
    EXPECT_EQ(cuda::LaunchNarrow(narrow, nullptr), nullptr);
    double longest = 0;
    for (const auto& row : problem.rows) {
      double squares = 0;
      for (const float value : row) squares += double{value} * value;
      longest = std::max(longest, std::sqrt(squares));
    }
    const double n = half_stride / 8 + 48, bound = n * 0x1p-24 / (1 - n * 0x1p-24);
    const DeviceArray<uint64_t> lists(static_cast<size_t>(args_.query_count * blocks * k));
    const DeviceArray<uint64_t> half_lists(static_cast<size_t>(args_.query_count * blocks * kept));
    const DeviceArray<FoundRow> found(static_cast<size_t>(args_.query_count * k));
    const DeviceArray<uint32_t> unproven(static_cast<size_t>(args_.query_count));
    cuda::HalfScanArgs args;
    args.exact = Args(k, blocks, at_once);
    args.exact.lists = lists.data();
    args.exact.found = found.data();
    args.exact.only = unproven.data();
    args.halves = halves.data();
    args.half_stride = half_stride;
    args.kept = kept;
    args.blocks = blocks;
    args.queries_at_once = at_once;
    args.list_entries = cuda::ScanListEntries(kept);
    args.lists = half_lists.data();
    args.scale = static_cast<float>((1 - bound) * (1 - 0x1p-20));
    args.margin = static_cast<float>(error_factor * 0x1p-11 * longest * (1 + 0x1p-20) + 1e-6);
    args.unproven = unproven.data();
    EXPECT_EQ(cuda::LaunchHalfScan(args, nullptr), nullptr);
    return {Read(found, k), unproven.Values()};
  }

 private:
  cuda::ScanArgs Args(int k, int blocks, int at_once) const {
    cuda::ScanArgs args = args_;
    args.k = k;
    args.blocks = blocks;
    args.queries_at_once = at_once;
    args.list_entries = cuda::ScanListEntries(k);
    return args;
  }
  std::vector<Found> Read(const DeviceArray<FoundRow>& found, int k) const {
    const std::vector<FoundRow> rows = found.Values();
    std::vector<Found> all(rows.size() / static_cast<size_t>(k));
    for (size_t i = 0; i < rows.size(); ++i) {
      if (rows[i].squared == cuda::kNoNeighbor) continue;
      EXPECT_EQ(labels_[rows[i].row], rows[i].label);
      all[i / static_cast<size_t>(k)].emplace_back(rows[i].squared, rows[i].label);
    }
    return all;
  }

  const int row_stride_;
  const std::vector<int64_t> labels_;
  DeviceArray<float> rows_;
  DeviceArray<int64_t> device_labels_;
  DeviceArray<uint32_t> admitted_;
  DeviceArray<int> starts_;
  DeviceArray<float> queries_;
  cuda::ScanArgs args_;
};

void ExpectOracle(const Problem& problem, const std::vector<Found>& found, int k) {
  ASSERT_EQ(found.size(), problem.queries.size());
  for (size_t query = 0; query < found.size(); ++query) {
    ASSERT_EQ(found[query], Oracle(problem, query, k))
        << "query " << query << ", k " << k << ", seed " << host_cuda::Seed();
  }
}

TEST(ScanKernel, DistancesHaveTheBitsOfSquaredDistanceAtEveryDimension) {
  std::vector<int> dimensions;
  for (int dimension = 1; dimension <= 72; ++dimension) dimensions.push_back(dimension);
  for (const int dimension : {95, 96, 97, 127, 160, 255, 384, 385, 511, 768, 1000}) dimensions.push_back(dimension);
  for (const int dimension : dimensions) {
    SCOPED_TRACE(testing::Message() << "dimension " << dimension);
    host_cuda::SetSeed(static_cast<uint64_t>(dimension));
    const Problem problem = RandomProblem(static_cast<uint32_t>(dimension), 19, dimension, 1 + dimension % 3);
    OnDevice device(problem);
    for (const int at_once : {1, 2, 4, 8}) ExpectOracle(problem, device.Scan(19, 1, at_once), 19);
  }
}

TEST(ScanKernel, ResultsAreBitwiseTheSameInEveryOrderOfThreadsAndBlocks) {
  Problem problem = RandomProblem(5, 700, 40, 3);
  for (size_t i = 0; i < 700; i += 3) problem.admitted[i] = false;
  OnDevice device(problem);
  for (uint64_t seed = 0; seed < 6; ++seed) {
    host_cuda::SetSeed(seed);
    for (const int blocks : {1, 3}) ExpectOracle(problem, device.Scan(20, blocks, 2), 20);
  }
}

// Rows come nearer and nearer: each enters the lists, which are sorted and cut again and again.
TEST(ScanKernel, ListsOverflowWithoutLosingARow) {
  for (const int k : {1, 100, 128, 129, 513, 1024}) {
    Problem problem = RandomProblem(6, 2600, 4, 1);
    std::fill(problem.queries[0].begin(), problem.queries[0].end(), 0.0f);
    for (int i = 0; i < 2600; ++i) problem.rows[static_cast<size_t>(i)] = {static_cast<float>(2600 - i), 0, 0, 0};
    OnDevice device(problem);
    ExpectOracle(problem, device.Scan(k, 1, 1), k);
    ExpectOracle(problem, device.Scan(k, 2, 1), k);
  }
}

// Two of eight blocks have the nearest rows, so most of what the merge reads late enters its list.
TEST(ScanKernel, MergedListOverflowsWithoutLosingARow) {
  constexpr int kRows = 8 * 1024, kRowsOfStep = 128, kBlocks = 8;
  Problem problem = RandomProblem(61, kRows, 4, 1);
  std::fill(problem.queries[0].begin(), problem.queries[0].end(), 0.0f);
  for (int i = 0; i < kRows; ++i) {
    const int block = i / kRowsOfStep % kBlocks;
    problem.rows[static_cast<size_t>(i)] = {static_cast<float>(kRows - i) + (block < 2 ? 0.0f : 1e5f), 0, 0, 0};
  }
  OnDevice device(problem);
  for (uint64_t seed = 0; seed < 6; ++seed) {
    host_cuda::SetSeed(seed);
    ExpectOracle(problem, device.Scan(cuda::kScanNeighborsMax, kBlocks, 1), cuda::kScanNeighborsMax);
  }
}

TEST(ScanKernel, TiesGoToTheLowerLabel) {
  Problem problem = RandomProblem(7, 900, 33, 2);
  for (size_t i = 0; i < 900; ++i) problem.rows[i] = problem.rows[i % 4];  // 225 of each
  OnDevice device(problem);
  for (const int k : {1, 7, 225, 226, 300}) {
    for (uint64_t seed = 0; seed < 3; ++seed) {
      host_cuda::SetSeed(seed);
      ExpectOracle(problem, device.Scan(k, 2, 2), k);
    }
  }
}

TEST(ScanKernel, OnlyAdmittedRowsAreFoundAndFewerThanWantedWhereThereAreFewer) {
  Problem problem = RandomProblem(8, 300, 12, 5);
  for (size_t i = 0; i < 300; ++i) problem.admitted[i] = i % 50 == 7;
  OnDevice device(problem);
  ExpectOracle(problem, device.Scan(4, 2, 4), 4);
  ExpectOracle(problem, device.Scan(100, 2, 8), 100);
  std::fill(problem.admitted.begin(), problem.admitted.end(), false);
  EXPECT_THAT(OnDevice(problem).Scan(3, 2, 1)[0], testing::IsEmpty());
}

TEST(ScanKernel, DistancesThatOverflowOrUnderflowKeepTheirOrder) {
  Problem problem = RandomProblem(9, 64, 8, 1);
  for (size_t i = 0; i < 64; ++i) {
    const float scale = i % 3 == 0 ? 3e38f : i % 3 == 1 ? 1e-25f : 1.0f;
    for (float& value : problem.rows[i]) value = value < 0 ? -scale : scale;
  }
  problem.queries[0] = {-3e38f, 0, 1e-25f, 0, 0, 0, 0, 0};
  ExpectOracle(problem, OnDevice(problem).Scan(64, 2, 1), 64);
  std::fill(problem.queries[0].begin(), problem.queries[0].end(), 0.0f);
  ExpectOracle(problem, OnDevice(problem).Scan(64, 2, 1), 64);
}

// What SearchPathways asks: chosen layers in the order given, each summed for itself.
TEST(ScanKernel, SegmentsAreSummedInTheirOrder) {
  for (const int experts : {6, 8, 33, 64}) {
    Problem problem = RandomProblem(10, 150, experts, 0, /*segments=*/5);
    problem.chosen = {3, 0, 4};
    for (int query = 0; query < 2; ++query) {
      problem.queries.push_back(RandomProblem(static_cast<uint32_t>(20 + query), 1, 3 * experts, 0).rows[0]);
    }
    ExpectOracle(problem, OnDevice(problem).Scan(10, 2, 1), 10);
  }
}

TEST(HalfScanKernel, FindsTheNeighborsOfTheFloat32Scan) {
  for (const int dimension : {5, 64, 100, 384}) {
    SCOPED_TRACE(testing::Message() << "dimension " << dimension);
    Problem problem = RandomProblem(static_cast<uint32_t>(30 + dimension), 900, dimension, 3);
    for (size_t i = 0; i < 900; i += 5) problem.admitted[i] = false;
    OnDevice device(problem);
    for (const int at_once : {1, 2, 4, 8}) {
      host_cuda::SetSeed(static_cast<uint64_t>(at_once));
      const OnDevice::HalfResult result = device.HalfScan(problem, 8, 64, 2, at_once);
      ExpectOracle(problem, result.found, 8);
      if (dimension >= 64) {
        EXPECT_THAT(result.unproven, testing::Each(0u));
      }
    }
  }
}

// Rows that float16 cannot tell apart: the bound must not claim anything, and the float32 scan decides.
TEST(HalfScanKernel, WhatTheBoundCannotDecideIsScannedInFloat32) {
  Problem problem = RandomProblem(40, 600, 24, 3);
  const std::vector<float> center = problem.rows[0];
  std::mt19937 random(41);
  for (size_t i = 0; i < 600; ++i) {
    problem.rows[i] = center;
    problem.rows[i][random() % 24] += 1e-6f * static_cast<float>(random() % 100);
  }
  problem.queries[1] = center;
  OnDevice device(problem);
  const OnDevice::HalfResult result = device.HalfScan(problem, 8, 64, 2, 2);
  EXPECT_THAT(result.unproven, testing::Each(1u));
  ExpectOracle(problem, result.found, 8);
  // With a bound that promises too much the same problem is answered wrongly: the bound is what decides.
  const OnDevice::HalfResult careless = device.HalfScan(problem, 8, 64, 2, 2, /*error_factor=*/-1);
  EXPECT_THAT(careless.unproven, testing::Each(0u));
  EXPECT_NE(careless.found[0], Oracle(problem, 0, 8));
}

TEST(HalfScanKernel, FewerRowsThanKeptAreAllCompared) {
  const Problem problem = RandomProblem(50, 40, 24, 2);
  const OnDevice::HalfResult result = OnDevice(problem).HalfScan(problem, 30, 64, 2, 2);
  EXPECT_THAT(result.unproven, testing::Each(0u));
  ExpectOracle(problem, result.found, 30);
}

TEST(ScanKernel, ArgumentsOutOfRangeAreRefused) {
  Problem problem = RandomProblem(60, 10, 8, 1);
  OnDevice device(problem);
  cuda::ScanArgs args;
  EXPECT_STREQ(cuda::LaunchScan(args, nullptr), "scan: k is out of range");
  args.k = 1;
  EXPECT_STREQ(cuda::LaunchScan(args, nullptr), "scan: row count out of range");
  EXPECT_EQ(cuda::ScanQueriesAtOnce(1, 384, 16, 100 << 10), 1);
  EXPECT_EQ(cuda::ScanQueriesAtOnce(3, 384, 16, 100 << 10), 4);
  EXPECT_EQ(cuda::ScanQueriesAtOnce(500, 384, 16, 100 << 10), 8);
  EXPECT_EQ(cuda::ScanQueriesAtOnce(500, 384, 1024, 100 << 10), 4);
  EXPECT_EQ(cuda::ScanQueriesAtOnce(1, cuda::kScanWidthMax, 16, 16 << 10), 0);
}

}  // namespace
}  // namespace c3po
