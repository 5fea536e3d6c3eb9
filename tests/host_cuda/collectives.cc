#include "tests/host_cuda/collectives.h"

#include <algorithm>
#include <bit>
#include <string>

namespace c3po::host_cuda {

namespace {

float Widen(uint32_t bfloat16_bits) { return std::bit_cast<float>(bfloat16_bits << 16); }

// The element of a lane's word: column 2t + i of row g, with g = lane / 4 and t = lane % 4.
uint32_t Element(uint32_t word, int i) { return i == 0 ? word & 0xffff : word >> 16; }

void CompleteShuffle(Arrival* const lanes[32]) {
  for (int lane = 0; lane < 32; ++lane) {
    auto& arrival = static_cast<ShuffleArrival&>(*lanes[lane]);
    std::copy_n(static_cast<ShuffleArrival&>(*lanes[arrival.from]).given, 8, arrival.got);
  }
}

void CompleteVote(Arrival* const lanes[32]) {
  uint32_t votes = 0;
  for (int lane = 0; lane < 32; ++lane) votes |= uint32_t{static_cast<VoteArrival&>(*lanes[lane]).given} << lane;
  for (int lane = 0; lane < 32; ++lane) static_cast<VoteArrival&>(*lanes[lane]).got = votes;
}

// The matrices are put together from the lanes' registers, multiplied as matrices, and taken apart again.
void CompleteMultiplyAdd(Arrival* const lanes[32]) {
  float a[16][16];  // [row][k]
  float b[16][8];   // [k][column]
  double sum[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& arrival = static_cast<const ProductArrival&>(*lanes[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 2; ++i) {
      const int k = 2 * t + i;
      a[g][k] = Widen(Element(arrival.a[0], i));
      a[g + 8][k] = Widen(Element(arrival.a[1], i));
      a[g][k + 8] = Widen(Element(arrival.a[2], i));
      a[g + 8][k + 8] = Widen(Element(arrival.a[3], i));
      b[k][g] = Widen(Element(arrival.b[0], i));
      b[k + 8][g] = Widen(Element(arrival.b[1], i));
      sum[g][k] = arrival.d[i];
      sum[g + 8][k] = arrival.d[2 + i];
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 16; ++k) {
      for (int column = 0; column < 8; ++column) sum[row][column] += double{a[row][k]} * double{b[k][column]};
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    auto& arrival = static_cast<ProductArrival&>(*lanes[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) arrival.d[i] = static_cast<float>(sum[g + 8 * (i / 2)][2 * t + i % 2]);
  }
}

void CompleteTranspose(Arrival* const lanes[32]) {
  uint32_t matrix[8][8];
  for (int lane = 0; lane < 32; ++lane) {
    const uint32_t word = static_cast<MatrixArrival&>(*lanes[lane]).words[0];
    for (int i = 0; i < 2; ++i) matrix[lane / 4][2 * (lane % 4) + i] = Element(word, i);
  }
  for (int lane = 0; lane < 32; ++lane) {
    const int row = lane / 4, column = 2 * (lane % 4);
    static_cast<MatrixArrival&>(*lanes[lane]).words[0] = matrix[column][row] | matrix[column + 1][row] << 16;
  }
}

void CompleteLoadMatrices(Arrival* const lanes[32]) {
  for (int lane = 0; lane < 32; ++lane) {
    auto& arrival = static_cast<MatrixArrival&>(*lanes[lane]);
    for (int matrix = 0; matrix < 4; ++matrix) {
      const void* const row = static_cast<MatrixArrival&>(*lanes[8 * matrix + lane / 4]).row;
      const uint16_t* const pair = static_cast<const uint16_t*>(row) + 2 * (lane % 4);
      arrival.words[matrix] = uint32_t{pair[0]} | uint32_t{pair[1]} << 16;
    }
  }
}

}  // namespace

const CollectiveKind kSyncBlock{"SyncBlock", true, nullptr};
const CollectiveKind kSyncWarp{"SyncWarp", false, nullptr};
const CollectiveKind kShuffle{"Shuffle", false, CompleteShuffle};
const CollectiveKind kShuffleXor{"ShuffleXor", false, CompleteShuffle};
const CollectiveKind kShuffleDown{"ShuffleDown", false, CompleteShuffle};
const CollectiveKind kShuffleUp{"ShuffleUp", false, CompleteShuffle};
const CollectiveKind kBallot{"Ballot", false, CompleteVote};
const CollectiveKind kAny{"Any", false, CompleteVote};
const CollectiveKind kAll{"All", false, CompleteVote};
const CollectiveKind kMultiplyAdd{"MultiplyAdd16x8x16", false, CompleteMultiplyAdd};
const CollectiveKind kTranspose{"Transpose8x8", false, CompleteTranspose};
const CollectiveKind kLoadMatrices{"LoadMatrices4", false, CompleteLoadMatrices};

uint32_t Vote(const CollectiveKind& kind, bool predicate, const std::source_location& place) {
  VoteArrival arrival{{&kind, place}, predicate, 0};
  WaitForGroup(arrival);
  return arrival.got;
}

int CheckedLaneArgument(int value) {
  if (value < 0 || value > 31) Fail("a shuffle by " + std::to_string(value) + ", which is not in 0..31");
  return value;
}

void CheckAligned(const void* at, const char* what, int bytes) {
  if (reinterpret_cast<uintptr_t>(at) % static_cast<uintptr_t>(bytes) == 0) return;
  Fail(std::string(what) + " at an address that is not " + std::to_string(bytes) + "-byte aligned");
}

}  // namespace c3po::host_cuda
