#include "client/eval/option_setting.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <google/protobuf/util/json_util.h>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "index/base/number_text.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

using google::protobuf::EnumDescriptor;
using google::protobuf::EnumValueDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

constexpr uint32_t kLayersMax = 4096;  // Of a range, so that a slip of the finger does not fill the memory.

// METHOD_MODE_FINDING of the enum Method: "mode_finding".
std::string ShortName(const EnumValueDescriptor& value) {
  // The prefix is the enum's name in capitals, words apart: the zero value's name without UNSPECIFIED.
  const std::string zero = value.type()->value(0)->name();
  const absl::string_view prefix = absl::StripSuffix(zero, "UNSPECIFIED");
  return absl::AsciiStrToLower(absl::StripPrefix(value.name(), prefix));
}

absl::Status SetEnum(const FieldDescriptor& field, absl::string_view value, Message* message) {
  std::vector<std::string> names;
  for (int i = 1; i < field.enum_type()->value_count(); ++i) {
    const EnumValueDescriptor& candidate = *field.enum_type()->value(i);
    names.push_back(ShortName(candidate));
    if (names.back() == value || candidate.name() == value) {
      message->GetReflection()->SetEnum(message, &field, &candidate);
      return absl::OkStatus();
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat(field.name(), ": \"", value, "\" is none of ", absl::StrJoin(names, ", ")));
}

std::string JsonOf(const Message& message) {
  google::protobuf::util::JsonPrintOptions print;
  print.preserve_proto_field_names = true;
  std::string json;
  // Options always have a JSON form.
  return google::protobuf::util::MessageToJsonString(message, &json, print).ok() ? json : "{}";
}

absl::Status SetRepeated(const FieldDescriptor& field, absl::string_view value, Message* message) {
  const Reflection& reflection = *message->GetReflection();
  reflection.ClearField(message, &field);
  if (field.cpp_type() == FieldDescriptor::CPPTYPE_UINT32) {
    C3PO_ASSIGN_OR_RETURN(const std::vector<uint32_t> layers, ParseLayerList(value));
    for (const uint32_t layer : layers) reflection.AddUInt32(message, &field, layer);
  } else {
    for (const absl::string_view part : absl::StrSplit(value, ',')) {
      reflection.AddString(message, &field, std::string(part));
    }
  }
  return absl::OkStatus();
}

absl::Status SetScalar(const FieldDescriptor& field, absl::string_view value, Message* message) {
  const Reflection& reflection = *message->GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_UINT32: {
      uint32_t number = 0;
      if (!absl::SimpleAtoi(value, &number)) break;
      reflection.SetUInt32(message, &field, number);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_DOUBLE: {
      double number = 0;
      if (!absl::SimpleAtod(value, &number)) break;
      reflection.SetDouble(message, &field, number);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_BOOL: {
      bool flag = false;
      if (!absl::SimpleAtob(value, &flag)) break;
      reflection.SetBool(message, &field, flag);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_STRING:
      reflection.SetString(message, &field, std::string(value));
      return absl::OkStatus();
    case FieldDescriptor::CPPTYPE_ENUM:
      return SetEnum(field, value, message);
    default:
      break;
  }
  return absl::InvalidArgumentError(
      absl::StrCat(field.name(), ": \"", value, "\" is no ", field.cpp_type_name(), " value"));
}

std::string ValueText(const FieldDescriptor& field, const Message& message) {
  const Reflection& reflection = *message.GetReflection();
  if (field.is_repeated()) {
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_UINT32) {
      google::protobuf::RepeatedField<uint32_t> layers;
      for (int i = 0; i < reflection.FieldSize(message, &field); ++i) {
        layers.Add(reflection.GetRepeatedUInt32(message, &field, i));
      }
      return DescribeLayers(layers);
    }
    std::vector<std::string> values;
    for (int i = 0; i < reflection.FieldSize(message, &field); ++i) {
      values.push_back(reflection.GetRepeatedString(message, &field, i));
    }
    return absl::StrJoin(values, ",");
  }
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_UINT32:
      return absl::StrCat(reflection.GetUInt32(message, &field));
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return NumberText(reflection.GetDouble(message, &field));
    case FieldDescriptor::CPPTYPE_BOOL:
      return reflection.GetBool(message, &field) ? "true" : "false";
    case FieldDescriptor::CPPTYPE_ENUM:
      return ShortName(*reflection.GetEnum(message, &field));
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return JsonOf(reflection.GetMessage(message, &field));
    default:
      return reflection.GetString(message, &field);
  }
}

// The one option that is not described field by field, and is set as a whole.
bool IsFilter(const FieldDescriptor& field) { return field.message_type() == v1::Filter::descriptor(); }

absl::Status SetFilter(const FieldDescriptor& field, absl::string_view value, Message* message) {
  v1::Filter filter;
  const auto read = google::protobuf::util::JsonStringToMessage(std::string(value), &filter);
  if (!read.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(field.name(), ": is no filter as JSON: ", read.message().ToString()));
  }
  message->GetReflection()->MutableMessage(message, &field)->CopyFrom(filter);
  return absl::OkStatus();
}

void Describe(const Message& message, const Message& base, const std::string& prefix, std::vector<std::string>* parts) {
  std::vector<const FieldDescriptor*> fields;
  message.GetReflection()->ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE && !IsFilter(*field)) {
      Describe(message.GetReflection()->GetMessage(message, field), base.GetReflection()->GetMessage(base, field),
               absl::StrCat(prefix, field->name(), "."), parts);
      continue;
    }
    const bool in_base = field->is_repeated() ? base.GetReflection()->FieldSize(base, field) > 0
                                              : base.GetReflection()->HasField(base, field);
    const std::string value = ValueText(*field, message);
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_ENUM && value == "unspecified") continue;  // as good as not set
    if (in_base && ValueText(*field, base) == value) continue;
    parts->push_back(absl::StrCat(prefix, field->name(), " ", value));
  }
}

}  // namespace

absl::StatusOr<std::vector<uint32_t>> ParseLayerList(absl::string_view text) {
  std::vector<uint32_t> layers;
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    const std::vector<std::string> ends = absl::StrSplit(part, absl::MaxSplits('-', 1));
    uint32_t first = 0;
    uint32_t last = 0;
    if (!absl::SimpleAtoi(ends.front(), &first) || !absl::SimpleAtoi(ends.back(), &last) || first > last ||
        last - first >= kLayersMax) {
      return absl::InvalidArgumentError(absl::StrCat("\"", text, "\" is no list of layers like 25,26 or 25-29"));
    }
    for (uint32_t layer = first; layer <= last; ++layer) layers.push_back(layer);
  }
  return layers;
}

std::string DescribeLayers(const google::protobuf::RepeatedField<uint32_t>& layers) {
  const bool run = layers.size() > 2 && static_cast<int>(layers[layers.size() - 1] - layers[0]) + 1 == layers.size();
  return run ? absl::StrCat(layers[0], "-", layers[layers.size() - 1]) : absl::StrJoin(layers, ",");
}

absl::Status SetOption(absl::string_view field, absl::string_view value, v1::OptimizationOptions* options) {
  Message* message = options;
  std::vector<std::string> path = absl::StrSplit(field, '.');
  for (size_t i = 0; i < path.size(); ++i) {
    const FieldDescriptor* found = message->GetDescriptor()->FindFieldByName(path[i]);
    const bool is_filter = found != nullptr && IsFilter(*found);
    const bool is_message = found != nullptr && found->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE && !is_filter;
    if (found == nullptr || is_message != (i + 1 < path.size())) {
      std::vector<std::string> names;
      for (int f = 0; f < message->GetDescriptor()->field_count(); ++f) {
        names.push_back(message->GetDescriptor()->field(f)->name());
      }
      return absl::InvalidArgumentError(
          absl::StrCat(field, ": no such option; there are ", absl::StrJoin(names, ", ")));
    }
    if (is_message) {
      message = message->GetReflection()->MutableMessage(message, found);
    } else {
      if (is_filter) return SetFilter(*found, value, message);
      return found->is_repeated() ? SetRepeated(*found, value, message) : SetScalar(*found, value, message);
    }
  }
  return absl::InvalidArgumentError("an option's name is empty");
}

std::string OptionsJson(const v1::OptimizationOptions& options) { return JsonOf(options); }

absl::StatusOr<v1::OptimizationOptions> ParseOptionsJson(absl::string_view json) {
  v1::OptimizationOptions options;
  const auto status = google::protobuf::util::JsonStringToMessage(std::string(json), &options);
  if (!status.ok()) return absl::InvalidArgumentError(status.message().ToString());
  return options;
}

std::string DescribeOptions(const v1::OptimizationOptions& options, const v1::OptimizationOptions& base) {
  std::vector<std::string> parts;
  Describe(options, base, "", &parts);
  return absl::StrJoin(parts, " · ");
}

}  // namespace c3po
