// Requests, from bytes to validated values. The first byte chooses the message; the rest is its wire format, or, where
// '#' comes first, its text format. Settings that are taken survive the way back to protobuf and in again.

#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>

#include "index/types/reference_validation.h"
#include "server/pipeline/optimization_settings.h"
#include "server/rpc/convert.h"
#include "server/rpc/wire.h"
#include "server/sampling/sampler.h"
#include "tests/fuzz/fuzz_target.h"

namespace c3po {
namespace {

class Silent : public google::protobuf::io::ErrorCollector {
 public:
  void AddError(int, google::protobuf::io::ColumnNumber, const std::string&) override {}
};

// What the service reads, if it is a message at all.
template <typename Request>
absl::StatusOr<Request> Read(absl::string_view input) {
  std::string bytes(input);
  if (!bytes.empty() && bytes[0] == '#') {
    Request request;
    google::protobuf::TextFormat::Parser parser;
    Silent silent;
    parser.RecordErrorsTo(&silent);
    if (!parser.ParseFromString(bytes.substr(1), &request)) return absl::InvalidArgumentError("no text format");
    bytes = request.SerializeAsString();
  }
  const grpc::Slice slice(bytes);
  return ParseRequest<Request>(grpc::ByteBuffer(&slice, 1));
}

ModelShape SomeShape() {
  ModelShape shape;
  shape.layers = shape.moe_layers = 6;
  shape.experts = 16;
  shape.experts_per_token = 2;
  return shape;
}

void UseSettings(const v1::OptimizationOptions& options) {
  const ModelShape shape = SomeShape();
  const OptimizationSettings defaults = DefaultSettings(shape);
  const auto settings = SettingsFromProto(options, defaults);
  if (!settings.ok() || !ValidateSettings(*settings, shape).ok()) return;
  const v1::OptimizationOptions written = SettingsToProto(*settings);
  const auto again = SettingsFromProto(written, defaults);
  C3PO_FUZZ_CHECK(again.ok() && ValidateSettings(*again, shape).ok());
  C3PO_FUZZ_CHECK(SettingsToProto(*again).SerializeAsString() == written.SerializeAsString());
}

void UseSampling(const v1::SamplingOptions& options) {
  const auto sampling = SamplingFromProto(options, SamplingParams(), /*drawn_seed=*/7);
  if (sampling.ok()) ValidateSamplingParams(*sampling).IgnoreError();
}

void UseSample(const v1::ReferenceSample& sample) { ValidateSample(SampleFromProto(sample)).IgnoreError(); }

void UseRequest(absl::string_view input) {
  if (input.empty()) return;
  const absl::string_view rest = input.substr(1);
  switch (input[0]) {
    case 'g':
      if (const auto request = Read<v1::GenerateRequest>(rest); request.ok()) {
        InputFromProto(*request).IgnoreError();
        UseSampling(request->sampling());
        UseSettings(request->optimization());
      }
      break;
    case 's':
      if (const auto request = Read<v1::ScoreRequest>(rest); request.ok()) {
        InputFromProto(*request).IgnoreError();
        UseSettings(request->optimization());
      }
      break;
    case 't':
      if (const auto request = Read<v1::TunePriorRequest>(rest); request.ok()) {
        TuneFromProto(*request, DefaultSettings(SomeShape())).IgnoreError();
      }
      break;
    case 'r':
      if (const auto request = Read<v1::AddReferencesRequest>(rest); request.ok()) {
        if (request->has_sample()) UseSample(request->sample());
      }
      break;
    default:
      break;
  }
}

}  // namespace
}  // namespace c3po

C3PO_FUZZ_TARGET(input) { c3po::UseRequest(input); }
