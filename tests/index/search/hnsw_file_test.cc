#include "index/search/hnsw_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>

#include "absl/strings/escaping.h"
#include "index/base/durable_file.h"
#include "index/base/sha256.h"
#include "index/search/hnsw_index.h"
#include "tests/index/store/random_reference.h"

namespace c3po {
namespace {

constexpr int kDimension = 6;
constexpr int64_t kGeneration = 77;
constexpr size_t kHeaderBytes = 168;
constexpr int64_t kNodes = 1000;  // More than any graph here has.
constexpr int64_t kFileMax = int64_t{1} << 20;

class HnswFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    options_.m = 4;
    options_.ef_construction = 40;
    std::mt19937 random(9);
    auto graph = HnswIndex::Create(kDimension, options_);
    ASSERT_TRUE(graph.ok()) << graph.status();
    graph_ = *std::move(graph);
    for (int i = 0; i < 200; ++i) {
      vectors_.push_back(RandomUnitVector(random, kDimension));
      ASSERT_TRUE(graph_->Add(i * 1000003, vectors_[i]).ok());
    }
    for (int i = 0; i < 200; i += 7) ASSERT_TRUE(graph_->Remove(i * 1000003).ok());
    ASSERT_TRUE(graph_->Save(path_, kGeneration).ok());
    bytes_ = *ReadWholeFile(path_, kFileMax);
  }

  absl::StatusOr<std::unique_ptr<HnswIndex>> LoadBytes(const std::string& bytes) {
    const std::string path = folder_.File("altered.hnsw");
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
    return HnswIndex::Load(path, kDimension, options_, kGeneration, kNodes);
  }

  // Makes both digests those of the altered bytes, as a writer with a bug would.
  static std::string WithDigests(std::string bytes) {
    const auto digest = [](absl::string_view of) { return absl::HexStringToBytes(Sha256::HexOf(of)); };
    bytes.replace(kHeaderBytes - 64, 32, digest(absl::string_view(bytes).substr(kHeaderBytes)));
    bytes.replace(kHeaderBytes - 32, 32, digest(absl::string_view(bytes).substr(0, kHeaderBytes - 32)));
    return bytes;
  }

  ScratchFolder folder_;
  const std::string path_ = folder_.File("graph.hnsw");
  HnswOptions options_;
  std::unique_ptr<HnswIndex> graph_;
  std::vector<std::vector<float>> vectors_;
  std::string bytes_;
};

TEST_F(HnswFileTest, LoadedGraphAnswersAsTheSavedOneAndGrowsOn) {
  auto loaded = HnswIndex::Load(path_, kDimension, options_, kGeneration, kNodes);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ((*loaded)->size(), graph_->size());
  EXPECT_EQ((*loaded)->tombstones(), graph_->tombstones());
  for (const auto& query : vectors_) EXPECT_EQ(*(*loaded)->Search(query, 10), *graph_->Search(query, 10));
  EXPECT_TRUE((*loaded)->Holds(1000003, vectors_[1]));
  EXPECT_FALSE((*loaded)->Holds(1000003, vectors_[2]));
  EXPECT_FALSE((*loaded)->Holds(0, vectors_[0])) << "it was removed";

  const std::string again = folder_.File("again.hnsw");
  ASSERT_TRUE((*loaded)->Save(again, kGeneration).ok());
  EXPECT_EQ(*ReadWholeFile(again, kFileMax), bytes_);

  std::mt19937 random(10);
  for (int i = 0; i < 1500; ++i) ASSERT_TRUE((*loaded)->Add(-1 - i, RandomUnitVector(random, kDimension)).ok());
  EXPECT_EQ((*loaded)->size(), graph_->size() + 1500);
  EXPECT_EQ((*loaded)->Search(vectors_[1], 1)->front().label, 1000003);
}

TEST_F(HnswFileTest, EmptyGraphIsSavedAndLoaded) {
  auto empty = HnswIndex::Create(kDimension, options_);
  ASSERT_TRUE((*empty)->Save(path_, 0).ok());
  auto loaded = HnswIndex::Load(path_, kDimension, options_, 0, kNodes);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_TRUE((*loaded)->Search(vectors_[0], 3)->empty());
  ASSERT_TRUE((*loaded)->Add(1, vectors_[0]).ok());
  EXPECT_EQ((*loaded)->Search(vectors_[0], 3)->size(), 1u);
}

TEST_F(HnswFileTest, WhatCannotBeAGraphIsRefusedUnread) {
  std::filesystem::remove(path_);
  ASSERT_EQ(mkfifo(path_.c_str(), 0600), 0);
  const auto refusal = [&] {
    const absl::Status status = HnswIndex::Load(path_, kDimension, options_, kGeneration, kNodes).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_EQ(refusal(), "graph file " + path_ + ": is a FIFO, not a regular file");
  ASSERT_TRUE(graph_->Save(path_, kGeneration).ok()) << "it takes the FIFO's place";
  EXPECT_TRUE(HnswIndex::Load(path_, kDimension, options_, kGeneration, kNodes).ok());
  std::filesystem::resize_file(path_, uintmax_t{40} << 30);  // Sparse.
  EXPECT_THAT(refusal(), ::testing::HasSubstr("has 42949672960 bytes, at most"));
}

TEST_F(HnswFileTest, EveryGraphIsWithinTheBoundOfItsSize) {
  EXPECT_LE(static_cast<int64_t>(bytes_.size()), HnswFileBytesMax(200, kDimension, options_.m));
  std::mt19937 random(11);
  for (const int m : {2, 3, 16, 64}) {
    for (const int nodes : {0, 1, 10, 3000}) {
      HnswOptions options;
      options.m = m;
      options.ef_construction = m;
      auto graph = HnswIndex::Create(kDimension, options);
      ASSERT_TRUE(graph.ok()) << graph.status();
      for (int i = 0; i < nodes; ++i) ASSERT_TRUE((*graph)->Add(i, RandomUnitVector(random, kDimension)).ok());
      ASSERT_TRUE((*graph)->Save(path_, 0).ok());
      const auto size = static_cast<int64_t>(std::filesystem::file_size(path_));
      EXPECT_LE(size, HnswFileBytesMax(nodes, kDimension, m)) << m << " " << nodes;
      if (nodes < 3000) continue;
      EXPECT_LE(size, HnswFileBytesMax(nodes, kDimension, m) - (int64_t{1} << 20)) << m << ": without its slack";
    }
  }
  EXPECT_EQ(HnswFileBytesMax(std::numeric_limits<int64_t>::max(), 1 << 20, 4096), std::numeric_limits<int64_t>::max());
}

TEST_F(HnswFileTest, EveryPrefixIsRefused) {
  for (size_t size = 0; size < bytes_.size(); size += size < 2 * kHeaderBytes ? 1 : 37) {
    ASSERT_EQ(LoadBytes(bytes_.substr(0, size)).status().code(), absl::StatusCode::kDataLoss) << size;
  }
  EXPECT_EQ(LoadBytes(bytes_ + '\0').status().code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(LoadBytes(bytes_).ok());
}

TEST_F(HnswFileTest, EveryFlippedBitIsRefused) {
  std::mt19937 random(11);
  for (int round = 0; round < 2000; ++round) {
    std::string bytes = bytes_;
    const size_t at = round < static_cast<int>(kHeaderBytes) ? round : random() % bytes.size();
    bytes[at] ^= static_cast<char>(1 << random() % 8);
    ASSERT_EQ(LoadBytes(bytes).status().code(), absl::StatusCode::kDataLoss) << "byte " << at;
  }
}

// Defense in depth: what passes both digests is still refused, or is a graph that can be searched and added to.
TEST_F(HnswFileTest, AlteredFilesWithRightDigestsNeverCrash) {
  std::mt19937 random(12);
  int refused = 0, accepted = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string bytes = bytes_;
    const bool in_header = round % 3 == 0;
    const size_t at =
        in_header ? random() % (kHeaderBytes - 64) : kHeaderBytes + random() % (bytes.size() - kHeaderBytes);
    bytes[at] = static_cast<char>(random());
    auto loaded = LoadBytes(WithDigests(bytes));
    if (!loaded.ok()) {
      ++refused;
      continue;
    }
    ++accepted;
    ASSERT_TRUE((*loaded)->Search(vectors_[round % 200], 10).ok());
    ASSERT_TRUE((*loaded)->Add(-5, vectors_[round % 200]).ok());
    ASSERT_TRUE((*loaded)->Search(vectors_[round % 200], 200).ok());
  }
  EXPECT_GT(refused, 500);
  EXPECT_GT(accepted, 100);
}

TEST_F(HnswFileTest, GraphsThatLeadOutsideThemselvesAreRefused) {
  const HnswGraph good = *DecodeHnswGraph(bytes_);
  ASSERT_TRUE(CheckHnswGraph(good).ok());
  const auto refuses = [&](auto change) {
    HnswGraph graph = good;
    change(graph);
    return CheckHnswGraph(graph).code() == absl::StatusCode::kDataLoss &&
           DecodeHnswGraph(EncodeHnswGraph(graph)).status().code() == absl::StatusCode::kDataLoss;
  };
  EXPECT_TRUE(refuses([](HnswGraph& g) { g.links[1] = 200; }));
  EXPECT_TRUE(refuses([](HnswGraph& g) { g.links[1] = 0; })) << "node 0 links to itself";
  EXPECT_TRUE(refuses([](HnswGraph& g) { g.links[0] = 9; })) << "more than 2 m";
  EXPECT_TRUE(refuses([](HnswGraph& g) { g.links.pop_back(); }));
  EXPECT_TRUE(refuses([](HnswGraph& g) { g.links.push_back(0); }));
  EXPECT_TRUE(refuses([](HnswGraph& g) { g.layers[5] += 1; }));
  EXPECT_TRUE(refuses([](HnswGraph& g) { g.layers[5] = -1; }));
  EXPECT_TRUE(refuses([](HnswGraph& g) { g.top_layer += 1; }));
  EXPECT_TRUE(refuses([](HnswGraph& g) { g.entry_node = 200; }));
  EXPECT_TRUE(refuses([](HnswGraph& g) { g.labels[2] = g.labels[1]; }));
  EXPECT_TRUE(refuses([](HnswGraph& g) { g.removed[2] = 2; }));
  EXPECT_TRUE(refuses([](HnswGraph& g) { g.vectors[2] = INFINITY; }));
  EXPECT_TRUE(refuses([](HnswGraph& g) { g.m = 0; }));
}

TEST_F(HnswFileTest, SoundFilesOfAnotherKindAreTheWrongPrecondition) {
  EXPECT_EQ(HnswIndex::Load(path_, kDimension, options_, kGeneration + 1, kNodes).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(HnswIndex::Load(path_, kDimension + 1, options_, kGeneration, kNodes).status().code(),
            absl::StatusCode::kFailedPrecondition);
  HnswOptions other = options_;
  other.m = 8;
  EXPECT_EQ(HnswIndex::Load(path_, kDimension, other, kGeneration, kNodes).status().code(),
            absl::StatusCode::kFailedPrecondition);
  std::string next_version = bytes_;
  next_version[8] = 2;
  EXPECT_EQ(LoadBytes(WithDigests(next_version)).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(HnswIndex::Load(folder_.File("absent"), kDimension, options_, 0, kNodes).status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(HnswFileTest, FailedSaveKeepsTheOldFileAndLeavesNoOther) {
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {1000, 1000};
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) _exit(10);
    _exit(graph_->Save(path_, kGeneration + 1).code() == absl::StatusCode::kResourceExhausted ? 0 : 11);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_EQ(*ReadWholeFile(path_, kFileMax), bytes_);
  EXPECT_FALSE(std::filesystem::exists(path_ + ".tmp"));
  EXPECT_EQ(graph_->Save(folder_.File("absent/graph.hnsw"), 1).code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace c3po
