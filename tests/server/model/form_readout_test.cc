// Tokens that are chosen under a form, on the CPU's kernels and on another backend.

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "server/compute/device.h"
#include "server/sampling/sampler.h"
#include "tests/server/model/neighbor_scenario.h"
#include "tests/server/model/other_backend.h"
#include "tests/server/model/tiny_model.h"

namespace c3po {
namespace {

using Values = std::vector<float>;

class FormReadout : public testing::TestWithParam<const char*> {};

// Allows some tokens, always the same.
class FixedTokens final : public TokenMatcher {
 public:
  FixedTokens(int64_t vocabulary, uint32_t seed) : bits_(static_cast<size_t>((vocabulary + 31) / 32)) {
    std::mt19937 rng(seed);
    for (int64_t id = 0; id < vocabulary; ++id) {
      if (id != vocabulary / 2 && rng() % 5 > 0) continue;
      bits_[static_cast<size_t>(id / 32)] |= 1U << (id % 32);
      ids.push_back(static_cast<int32_t>(id));
    }
  }
  absl::StatusOr<absl::Span<const uint32_t>> NextTokens() override {
    if (fails) return absl::ResourceExhaustedError("form");
    return absl::Span<const uint32_t>(bits_);
  }
  absl::Status Accept(int32_t) override { return absl::OkStatus(); }
  absl::StatusOr<bool> IsAtEnd() override { return false; }
  std::vector<int32_t> ids;
  bool fails = false;

 private:
  std::vector<uint32_t> bits_;
};

// Rows beside each other, with and without a form: each is what the sampler gives of the allowed tokens' logits alone.
TEST_P(FormReadout, ChoosesAmongTheAllowedTokensAlone) {
  const std::unique_ptr<MoeModel> model = LoadTiny(GetParam());
  const std::unique_ptr<Backend> other = OtherBackend(GetParam(), model->config());
  other->AllocateKvCache(SlotsOf(256));
  const int64_t vocabulary = model->config().vocabulary_size, rows = 9;
  std::mt19937 rng(3);
  std::normal_distribution<float> normal;
  Values values(static_cast<size_t>(rows * vocabulary));
  for (float& value : values) value = normal(rng);
  std::vector<SamplingParams> params(static_cast<size_t>(rows));
  for (int64_t r = 0; r < rows; ++r) {
    SamplingParams& own = params[static_cast<size_t>(r)];
    own.temperature = r % 3 == 0 ? 0 : 0.5 + 0.25 * static_cast<double>(r);
    own.top_k = r % 2 == 0 ? 0 : 4;
    own.top_p = r == 5 ? 0.7 : 1;
    own.logprobs = static_cast<int>(r % 4) - 1;
    own.seed = static_cast<uint64_t>(r);
  }
  for (Backend* const backend : {&model->backend(), other.get()}) {
    const OwnedMatrix logits = backend->Allocate(ElementType::kFloat32, rows, vocabulary);
    backend->Write(values, logits.view());
    std::vector<std::unique_ptr<FixedTokens>> matchers;
    std::vector<ReadoutRequest> requests(static_cast<size_t>(rows));
    std::vector<Readout> readouts(requests.size());
    std::vector<const ReadoutRequest*> asked;
    std::vector<Readout*> given;
    for (size_t r = 0; r < requests.size(); ++r) {
      matchers.push_back(std::make_unique<FixedTokens>(vocabulary, static_cast<uint32_t>(r)));
      matchers.back()->fails = r == 7;
      requests[r].sampling = &params[r];
      requests[r].position = static_cast<int64_t>(r);
      requests[r].distribution = r == 2;
      if (r != 4) requests[r].matcher = matchers.back().get();
      asked.push_back(&requests[r]);
      given.push_back(&readouts[r]);
    }
    backend->ReadOut(logits.view(), asked, given);
    for (size_t r = 0; r < requests.size(); ++r) {
      SCOPED_TRACE(r);
      const absl::Span<const float> row =
          absl::MakeConstSpan(values).subspan(r * static_cast<size_t>(vocabulary), static_cast<size_t>(vocabulary));
      std::vector<int32_t> ids = matchers[r]->ids;
      if (r == 4) {
        ids.resize(row.size());
        std::iota(ids.begin(), ids.end(), 0);
      }
      Values allowed;
      for (const int32_t id : ids) allowed.push_back(row[static_cast<size_t>(id)]);
      if (r == 7) {
        EXPECT_EQ(readouts[r].status.code(), absl::StatusCode::kResourceExhausted);
        continue;
      }
      ASSERT_TRUE(readouts[r].status.ok()) << readouts[r].status;
      const SampledToken expected = *Sample(allowed, params[r], {}, static_cast<int64_t>(r));
      EXPECT_EQ(readouts[r].token.token_id, ids[static_cast<size_t>(expected.token_id)]);
      EXPECT_NEAR(readouts[r].token.logprob, expected.logprob, 1e-5);
      EXPECT_EQ(readouts[r].token.top_logprobs.size(), expected.top_logprobs.size());
      if (r == 2) {
        EXPECT_EQ(readouts[r].likeliest, std::max_element(row.begin(), row.end()) - row.begin());
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, FormReadout, testing::Values("mixtral_tiny", "olmoe_tiny"));

}  // namespace
}  // namespace c3po
