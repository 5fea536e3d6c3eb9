#include "server/rpc/filter_message.h"

#include <vector>

namespace c3po {
namespace {

using ConditionsMessage = google::protobuf::RepeatedPtrField<v1::Filter::Condition>;

MetadataRange RangeFromProto(const v1::Filter::Range& proto) {
  MetadataRange range;
  if (proto.has_gt()) range.gt = proto.gt();
  if (proto.has_gte()) range.gte = proto.gte();
  if (proto.has_lt()) range.lt = proto.lt();
  if (proto.has_lte()) range.lte = proto.lte();
  return range;
}

// Recursive with the message, whose depth protobuf bounds.
std::vector<MetadataCondition> ConditionsFromProto(const ConditionsMessage& protos) {
  std::vector<MetadataCondition> conditions;
  conditions.reserve(static_cast<size_t>(protos.size()));
  for (const v1::Filter::Condition& proto : protos) {
    MetadataCondition& condition = conditions.emplace_back();
    condition.key = proto.key();
    if (proto.has_equals()) condition.equals = proto.equals();
    condition.in.assign(proto.in().begin(), proto.in().end());
    if (proto.has_range()) condition.range = RangeFromProto(proto.range());
    if (proto.has_exists()) condition.exists = proto.exists();
    if (proto.has_filter()) condition.filter.push_back(FilterFromProto(proto.filter()));
  }
  return conditions;
}

void ConditionsToProto(const std::vector<MetadataCondition>& conditions, ConditionsMessage* out) {
  for (const MetadataCondition& condition : conditions) {
    v1::Filter::Condition* proto = out->Add();
    proto->set_key(condition.key);
    if (condition.equals) proto->set_equals(*condition.equals);
    for (const std::string& value : condition.in) proto->add_in(value);
    if (condition.exists) proto->set_exists(*condition.exists);
    for (const MetadataFilter& filter : condition.filter) *proto->mutable_filter() = FilterToProto(filter);
    if (!condition.range) continue;
    v1::Filter::Range* range = proto->mutable_range();
    if (condition.range->gt) range->set_gt(*condition.range->gt);
    if (condition.range->gte) range->set_gte(*condition.range->gte);
    if (condition.range->lt) range->set_lt(*condition.range->lt);
    if (condition.range->lte) range->set_lte(*condition.range->lte);
  }
}

}  // namespace

MetadataFilter FilterFromProto(const v1::Filter& proto) {
  return {ConditionsFromProto(proto.must()), ConditionsFromProto(proto.should()),
          ConditionsFromProto(proto.must_not())};
}

v1::Filter FilterToProto(const MetadataFilter& filter) {
  v1::Filter proto;
  ConditionsToProto(filter.must, proto.mutable_must());
  ConditionsToProto(filter.should, proto.mutable_should());
  ConditionsToProto(filter.must_not, proto.mutable_must_not());
  return proto;
}

}  // namespace c3po
