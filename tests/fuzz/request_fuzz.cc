// Requests, from bytes to validated values. The first byte chooses the message (wire_message.h). Settings that are
// taken survive the way back to protobuf and in again. Filters that are taken match what a plain loop says.

#include <array>

#include "index/search/metadata_index.h"
#include "index/types/reference_validation.h"
#include "server/pipeline/optimization_settings.h"
#include "server/rpc/convert.h"
#include "server/rpc/filter_message.h"
#include "server/sampling/sampler.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/fuzz/wire_message.h"

namespace c3po {
namespace {

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

void UseFilter(const v1::Filter& proto) {
  const MetadataFilter filter = FilterFromProto(proto);
  if (!ValidateFilter("filter", filter).ok()) return;
  C3PO_FUZZ_CHECK(FilterFromProto(FilterToProto(filter)) == filter);
  std::array<ReferenceRecord, 4> records;
  records[0].sample.metadata = {{"a", "1"}, {"b", "x"}};
  records[1].sample.metadata = {{"a", "-2.5"}, {"c", ""}};
  records[2].sample.metadata = {{"a", "x"}};
  MetadataIndex index;
  for (size_t i = 0; i < records.size(); ++i) index.Add(static_cast<int64_t>(i), records[i]);
  const auto found = index.Find(filter, /*successful_only=*/false);
  for (size_t i = 0; i < records.size(); ++i) {
    C3PO_FUZZ_CHECK(found->Admits(static_cast<int64_t>(i)) == Matches(filter, records[i].sample.metadata));
  }
}

void UseSample(const v1::ReferenceSample& sample) { ValidateSample(SampleFromProto(sample)).IgnoreError(); }

void UseRequest(absl::string_view input) {
  if (input.empty()) return;
  const absl::string_view rest = input.substr(1);
  switch (input[0]) {
    case 'g':
      if (const auto request = ReadMessage<v1::GenerateRequest>(rest); request.ok()) {
        InputFromProto(*request).IgnoreError();
        FormFromProto(request->structured_output()).IgnoreError();
        UseSampling(request->sampling());
        UseSettings(request->optimization());
      }
      break;
    case 's':
      if (const auto request = ReadMessage<v1::ScoreRequest>(rest); request.ok()) {
        InputFromProto(*request).IgnoreError();
        UseSettings(request->optimization());
      }
      break;
    case 't':
      if (const auto request = ReadMessage<v1::TunePriorRequest>(rest); request.ok()) {
        TuneFromProto(*request, DefaultSettings(SomeShape())).IgnoreError();
      }
      break;
    case 'r':
      if (const auto request = ReadMessage<v1::AddReferencesRequest>(rest); request.ok()) {
        if (request->has_sample()) UseSample(request->sample());
      }
      break;
    case 'f':
      if (const auto request = ReadMessage<v1::SearchReferencesRequest>(rest); request.ok()) {
        UseFilter(request->filter());
      }
      break;
    default:
      break;
  }
}

}  // namespace
}  // namespace c3po

C3PO_FUZZ_TARGET(input) { c3po::UseRequest(input); }
