// One line of a reference file, JSONL, as `c3po refs import` reads it and the server judges it.

#include "client/eval/sample_line.h"
#include "index/types/reference_validation.h"
#include "server/rpc/convert.h"
#include "tests/fuzz/fuzz_target.h"

C3PO_FUZZ_TARGET(input) {
  const auto sample = c3po::ParseSampleLine(input);
  if (!sample.ok()) {
    C3PO_FUZZ_CHECK(sample.status().code() == absl::StatusCode::kInvalidArgument);
    return;
  }
  c3po::v1::ReferenceSample sent;
  C3PO_FUZZ_CHECK(sent.ParseFromString(sample->SerializeAsString()));
  const c3po::ReferenceSample received = c3po::SampleFromProto(sent);
  C3PO_FUZZ_CHECK(received.prompt == sample->prompt() && received.answer == sample->answer());
  if (const absl::Status status = c3po::ValidateSample(received); !status.ok()) {
    C3PO_FUZZ_CHECK(!status.message().empty());
  }
}
