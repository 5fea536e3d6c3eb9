#include "server/rpc/doors/field_names.h"

#include <gtest/gtest.h>

#include <string>

#include "server/types/status_details.h"

namespace c3po {
namespace {

constexpr FieldName kNames[] = {{"token_ids.ids", "tokenized.input_ids"},
                                {"token_ids", "tokenized"},
                                {"sampling", "params"},
                                {"gate.", "params.gate_"}};

std::string Renamed(const std::string& message) {
  return std::string(InTheirWords(absl::InvalidArgumentError(message), kNames).message());
}

TEST(InTheirWords, RenamesTheFirstRowThatFitsAWholePartOfThePath) {
  EXPECT_EQ(Renamed("sampling.top_p: is 2"), "params.top_p: is 2");
  EXPECT_EQ(Renamed("sampling: is wrong"), "params: is wrong");
  EXPECT_EQ(Renamed("gate.enabled: is wrong"), "params.gate_enabled: is wrong");
  EXPECT_EQ(Renamed("gate: is wrong"), "gate: is wrong");
  EXPECT_EQ(Renamed("token_ids.ids[3]: 9 is too large"), "tokenized.input_ids[3]: 9 is too large");
  EXPECT_EQ(Renamed("token_ids: has no tokens"), "tokenized: has no tokens");
}

TEST(InTheirWords, LeavesWhatMerelyBeginsAlike) {
  for (const char* message : {"sampling_rate: is 2", "sampling went wrong", "samplin", "the sampling.top_p: x", ""})
    EXPECT_EQ(Renamed(message), message);
}

TEST(InTheirWords, KeepsCodeAndPayloads) {
  EXPECT_TRUE(InTheirWords(absl::OkStatus(), kNames).ok());
  const absl::Status renamed =
      InTheirWords(WithReason(absl::ResourceExhaustedError("sampling.n: no"), kRateReason), kNames);
  EXPECT_EQ(renamed.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(renamed), kRateReason);
}

}  // namespace
}  // namespace c3po
