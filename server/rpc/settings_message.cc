#include "server/rpc/settings_message.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "index/base/status_macros.h"
#include "server/rpc/filter_message.h"
#include "server/rpc/message_fields.h"

namespace c3po {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

constexpr absl::string_view kGate = "gate.";

// The field of a message that a row names; tests look every row up.
const FieldDescriptor& FieldOf(const Message& message, absl::string_view name) {
  return *message.GetDescriptor()->FindFieldByName(std::string(name));
}

// Reads one field into what stands in the settings for it.
class FieldReader {
 public:
  FieldReader(const v1::OptimizationOptions& options, absl::string_view name)
      : path_(absl::StrCat("optimization.", name)),
        in_gate_(absl::ConsumePrefix(&name, kGate)),
        message_(in_gate_ ? static_cast<const Message&>(options.gate()) : options),
        field_(FieldOf(message_, name)),
        reflection_(*message_.GetReflection()) {}

  bool is_set() const { return field_.is_repeated() ? size() > 0 : reflection_.HasField(message_, &field_); }

  absl::Status Into(int& out) const { return ToInt(path_, reflection_.GetUInt32(message_, &field_), out); }
  absl::Status Into(double& out) const { return Set(reflection_.GetDouble(message_, &field_), out); }
  absl::Status Into(std::optional<double>& out) const { return Set(reflection_.GetDouble(message_, &field_), out); }
  absl::Status Into(bool& out) const { return Set(reflection_.GetBool(message_, &field_), out); }
  absl::Status Into(std::string& out) const { return Set(reflection_.GetString(message_, &field_), out); }
  absl::Status Into(std::vector<int>& out) const {
    google::protobuf::RepeatedField<uint32_t> layers;
    for (int i = 0; i < size(); ++i) layers.Add(reflection_.GetRepeatedUInt32(message_, &field_, i));
    return ReadLayers(path_, layers, out);
  }
  absl::Status Into(std::vector<std::string>& out) const {
    out.clear();
    for (int i = 0; i < size(); ++i) out.push_back(reflection_.GetRepeatedString(message_, &field_, i));
    return absl::OkStatus();
  }
  absl::Status Into(MetadataFilter& out) const {
    return Set(FilterFromProto(static_cast<const v1::Filter&>(reflection_.GetMessage(message_, &field_))), out);
  }
  template <typename Choice>
  absl::Status Into(Choice& out) const {
    return ReadChoice(path_, reflection_.GetEnumValue(message_, &field_), out);
  }

 private:
  int size() const { return reflection_.FieldSize(message_, &field_); }

  template <typename Value, typename Out>
  static absl::Status Set(Value value, Out& out) {
    out = std::move(value);
    return absl::OkStatus();
  }

  const std::string path_;
  const bool in_gate_;
  const Message& message_;
  const FieldDescriptor& field_;
  const Reflection& reflection_;
};

class FieldWriter {
 public:
  FieldWriter(v1::OptimizationOptions& options, absl::string_view name)
      : in_gate_(absl::ConsumePrefix(&name, kGate)),
        message_(in_gate_ ? static_cast<Message&>(*options.mutable_gate()) : options),
        field_(FieldOf(message_, name)),
        reflection_(*message_.GetReflection()) {}

  void From(int value) { reflection_.SetUInt32(&message_, &field_, static_cast<uint32_t>(value)); }
  void From(double value) { reflection_.SetDouble(&message_, &field_, value); }
  void From(const std::optional<double>& value) {
    if (value) From(*value);
  }
  void From(bool value) { reflection_.SetBool(&message_, &field_, value); }
  void From(const std::string& value) { reflection_.SetString(&message_, &field_, value); }
  void From(const std::vector<int>& values) {
    for (const int value : values) reflection_.AddUInt32(&message_, &field_, static_cast<uint32_t>(value));
  }
  void From(const std::vector<std::string>& values) {
    for (const std::string& value : values) reflection_.AddString(&message_, &field_, value);
  }
  void From(const MetadataFilter& value) {
    if (!value.empty()) reflection_.MutableMessage(&message_, &field_)->CopyFrom(FilterToProto(value));
  }
  template <typename Choice>
  void From(Choice value) {
    reflection_.SetEnumValue(&message_, &field_, TermOf(value).number);
  }

 private:
  const bool in_gate_;
  Message& message_;
  const FieldDescriptor& field_;
  const Reflection& reflection_;
};

}  // namespace

absl::StatusOr<OptimizationSettings> SettingsFromProto(const v1::OptimizationOptions& options,
                                                       const OptimizationSettings& defaults) {
  OptimizationSettings settings = defaults;
  settings.exclude_reference_ids.clear();
  if (options.has_k()) settings.epsilon.reset();
  if (options.has_epsilon()) {  // A default's: all within epsilon are fitted, as many of each answer as lie there.
    settings.validation_neighbors = 0;
    settings.balance = false;
  }
  if (options.has_neighbor_source() && options.neighbor_source() != TermOf(defaults.neighbor_source).number) {
    settings.epsilon.reset();  // Distances of a default's, between other vectors.
    settings.bandwidth.reset();
    settings.gate.max_neighbor_distance.reset();
  }
  if (options.gate().has_neighbor_distance_quantile()) settings.gate.max_neighbor_distance.reset();  // A profile's.
  absl::Status status;
  VisitOptions(settings, [&](const OptimizationOption& option, auto& value) {
    if (!status.ok()) return;
    const FieldReader field(options, option.name);
    if (field.is_set()) status = field.Into(value);
  });
  C3PO_RETURN_IF_ERROR(status);
  if (!options.has_neighborhoods() && (options.has_method() || options.has_k())) {
    const bool is_divided = settings.method == Method::kNeighborhoodGradientDescent &&
                            (settings.epsilon || settings.k >= settings.neighborhoods);
    if (!is_divided) settings.neighborhoods = 1;  // A default's.
  }
  return settings;
}

v1::OptimizationOptions SettingsToProto(const OptimizationSettings& settings) {
  v1::OptimizationOptions options;
  // k and epsilon are of one oneof: an epsilon, which is listed later, takes the place of k.
  VisitOptions(settings, [&](const OptimizationOption& option, const auto& value) {
    if (!option.is_of_one_request) FieldWriter(options, option.name).From(value);
  });
  return options;
}

}  // namespace c3po
