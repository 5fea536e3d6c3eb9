#include "server/compute/cuda/rows.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "tests/server/compute/cuda/device_rows.h"

namespace c3po::cuda {
namespace {

TEST(Embedding, ReadsRowsOfAPackedMatrix) {
  std::mt19937 random(7);
  for (const auto& [bits, planes] : kLyings) {
    for (const int columns : {40, 2051}) {
      const Floats w = RandomFloats(37, columns, random);
      const DeviceWeights weights(PackedLayout::Plain(37, columns, planes).WithBits(bits), w);
      const std::vector<int> tokens = {36, 0, 17, -1, 8, 17};
      const DeviceArray<int> device_tokens(tokens);
      const DeviceFloats out(6, columns, columns + 5);
      EmbeddingArgs args;
      args.weights = weights.view();
      args.tokens = device_tokens.data();
      args.rows = 6;
      args.multiplier = 12;
      args.out = out.data();
      args.stride = out.stride();
      ASSERT_EQ(LaunchEmbedding(args, nullptr), nullptr);
      const Floats y = out.Read(6, columns);
      EXPECT_TRUE(out.IsUntouchedBeyond(columns));
      for (int r = 0; r < 6; ++r) {
        const int token = tokens[size_t(r)];
        for (int c = 0; c < columns; ++c) {
          ASSERT_EQ(y(r, c), token < 0 ? 0 : 12 * weights.held()(token, c)) << r << " " << c;
        }
      }
    }
  }
}

}  // namespace
}  // namespace c3po::cuda
