#include "server/rpc/doors/kserve_request.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/util/json_util.h>

#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "index/base/status_macros.h"
#include "index/base/utf8.h"
#include "server/rpc/convert.h"
#include "server/rpc/doors/optimization_choice.h"

namespace c3po {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using inference::InferParameter;

constexpr char kInput[] = "text_input", kOutput[] = "text_output", kBytes[] = "BYTES";
constexpr absl::string_view kOurs = "c3po_";
constexpr char kPlatform[] = "c3po";
constexpr char kEmptyFinal[] = "triton_enable_empty_final_response";  // tritonclient's; there always is one.

absl::Status Refuse(absl::string_view field, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", why));
}

std::optional<double> NumberOf(const InferParameter& parameter) {
  switch (parameter.parameter_choice_case()) {
    case InferParameter::kInt64Param:
      return static_cast<double>(parameter.int64_param());
    case InferParameter::kUint64Param:
      return static_cast<double>(parameter.uint64_param());
    case InferParameter::kDoubleParam:
      return parameter.double_param();
    default:
      return std::nullopt;
  }
}

// A whole number in [0, max].
std::optional<uint64_t> CountOf(const InferParameter& parameter, uint64_t max) {
  if (parameter.has_uint64_param() && parameter.uint64_param() <= max) return parameter.uint64_param();
  if (parameter.has_int64_param() && parameter.int64_param() >= 0 &&
      static_cast<uint64_t>(parameter.int64_param()) <= max) {
    return static_cast<uint64_t>(parameter.int64_param());
  }
  return std::nullopt;
}

// Sets a scalar field, or adds to repeated texts.
absl::Status SetField(absl::string_view path, const InferParameter& value, const FieldDescriptor& field,
                      Message& message) {
  const auto& reflection = *message.GetReflection();
  const bool text = field.cpp_type() == FieldDescriptor::CPPTYPE_STRING;
  if (field.is_repeated() && !text) return Refuse(path, "is no single value, and cannot be a parameter");
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING:
      if (!value.has_string_param()) return Refuse(path, "must be a text");
      field.is_repeated() ? reflection.AddString(&message, &field, value.string_param())
                          : reflection.SetString(&message, &field, value.string_param());
      return absl::OkStatus();
    case FieldDescriptor::CPPTYPE_BOOL:
      if (!value.has_bool_param()) return Refuse(path, "must be true or false");
      reflection.SetBool(&message, &field, value.bool_param());
      return absl::OkStatus();
    case FieldDescriptor::CPPTYPE_UINT32: {
      const auto count = CountOf(value, std::numeric_limits<uint32_t>::max());
      if (!count) return Refuse(path, "must be a whole number that is not negative");
      reflection.SetUInt32(&message, &field, static_cast<uint32_t>(*count));
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_UINT64: {
      const auto count = CountOf(value, std::numeric_limits<uint64_t>::max());
      if (!count) return Refuse(path, "must be a whole number that is not negative");
      reflection.SetUInt64(&message, &field, *count);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_DOUBLE:
    case FieldDescriptor::CPPTYPE_FLOAT: {
      const auto number = NumberOf(value);
      if (!number) return Refuse(path, "must be a number");
      field.cpp_type() == FieldDescriptor::CPPTYPE_DOUBLE
          ? reflection.SetDouble(&message, &field, *number)
          : reflection.SetFloat(&message, &field, static_cast<float>(*number));
      return absl::OkStatus();
    }
    default:
      return Refuse(path, "is no single value, and cannot be a parameter");
  }
}

// Parameters are single values: the filter is one as JSON.
absl::Status ReadFilter(absl::string_view path, const InferParameter& value, v1::OptimizationOptions& options) {
  if (!value.has_string_param()) return Refuse(path, "must be a text, the filter as JSON");
  const auto read = google::protobuf::util::JsonStringToMessage(value.string_param(), options.mutable_filter());
  return read.ok() ? absl::OkStatus() : Refuse(path, absl::StrCat("is no filter: ", read.message().ToString()));
}

absl::Status ReadParameter(const std::string& key, const InferParameter& value, v1::SamplingOptions& sampling,
                           KserveQuestion& question) {
  const std::string path = absl::StrCat("parameters.", key);
  if (key == "stream" || key == kEmptyFinal) {
    if (!value.has_bool_param()) return Refuse(path, "must be true or false");
    if (key == "stream") question.stream = value.bool_param();
    return absl::OkStatus();
  }
  absl::string_view name = key;
  if (absl::ConsumePrefix(&name, kOurs)) {
    if (name == "method") {
      if (!value.has_string_param()) return Refuse(path, "must be a text");
      C3PO_ASSIGN_OR_RETURN(const v1::Method method, MethodOfWord(path, value.string_param()));
      question.optimization.set_method(method);
      return absl::OkStatus();
    }
    if (name == "filter") return ReadFilter(path, value, question.optimization);
    const FieldDescriptor* field = question.optimization.GetDescriptor()->FindFieldByName(std::string(name));
    if (field == nullptr) return Refuse(path, "is no option of an optimization");
    return SetField(path, value, *field, question.optimization);
  }
  const FieldDescriptor* field = sampling.GetDescriptor()->FindFieldByName(key);
  // One answer in one tensor, and no numbers beside it.
  if (field == nullptr || key == "n" || key == "logprobs") return Refuse(path, "is not supported by this server");
  return SetField(path, value, *field, sampling);
}

// The element of a raw BYTES tensor that has one.
absl::StatusOr<std::string> RawElement(absl::string_view field, const std::string& raw) {
  uint64_t length = 0;
  if (raw.size() < 4) return Refuse(field, "has no element");
  for (int i = 3; i >= 0; --i) length = (length << 8) | static_cast<unsigned char>(raw[static_cast<size_t>(i)]);
  if (length != raw.size() - 4)
    return Refuse(field, absl::StrCat("says that its element has ", length, " bytes, and has ", raw.size() - 4));
  return raw.substr(4);
}

absl::StatusOr<std::string> TextOf(const inference::ModelInferRequest& request) {
  if (request.inputs_size() != 1) return Refuse("inputs", absl::StrCat("must be one, ", kInput));
  const auto& input = request.inputs(0);
  if (input.name() != kInput) return Refuse("inputs[0].name", absl::StrCat("must be ", kInput));
  if (input.datatype() != kBytes) return Refuse("inputs[0].datatype", absl::StrCat("must be ", kBytes));
  for (int i = 0; i < input.shape_size(); ++i) {
    if (input.shape(i) != 1) return Refuse("inputs[0].shape", "must be of one element: one text for a request");
  }
  std::string text;
  const bool raw = request.raw_input_contents_size() > 0;
  if (raw) {
    if (request.raw_input_contents_size() != 1 || input.has_contents())
      return Refuse("raw_input_contents", "must be one for each input, and then no input has contents");
    C3PO_ASSIGN_OR_RETURN(text, RawElement("raw_input_contents[0]", request.raw_input_contents(0)));
  } else {
    if (input.contents().bytes_contents_size() != 1)
      return Refuse("inputs[0].contents.bytes_contents", "must be one text");
    text = input.contents().bytes_contents(0);
  }
  if (!IsValidUtf8(text))
    return Refuse(raw ? "raw_input_contents[0]" : "inputs[0].contents.bytes_contents", "is not valid UTF-8");
  return text;
}

}  // namespace

absl::Span<const FieldName> KserveFieldNames() {
  static constexpr FieldName kNames[] = {
      {"sampling", "parameters"}, {"prompt", "inputs[0]"}, {"optimization.", "parameters.c3po_"}};
  return kNames;
}

absl::Status CheckKserveModel(absl::string_view field, absl::string_view name, absl::string_view version,
                              absl::string_view served) {
  v1::OptimizationOptions unused;
  C3PO_RETURN_IF_ERROR(ChooseByModelName(field, name, served, unused));
  if (version.empty() || version == kKserveVersion) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat("the model has the version ", kKserveVersion, " alone"));
}

absl::StatusOr<KserveQuestion> QuestionFromKserve(const inference::ModelInferRequest& request, absl::string_view served,
                                                  const SamplingParams& defaults, uint64_t drawn_seed) {
  C3PO_RETURN_IF_ERROR(CheckKserveModel("model_name", request.model_name(), request.model_version(), served));
  KserveQuestion question;
  v1::SamplingOptions sampling;
  for (const auto& [key, value] : request.parameters())
    C3PO_RETURN_IF_ERROR(ReadParameter(key, value, sampling, question));
  C3PO_RETURN_IF_ERROR(ChooseByModelName("model_name", request.model_name(), served, question.optimization));
  for (int i = 0; i < request.outputs_size(); ++i) {
    if (request.outputs(i).name() != kOutput)
      return Refuse(absl::StrCat("outputs[", i, "].name"), absl::StrCat("must be ", kOutput));
    if (!request.outputs(i).parameters().empty())
      return Refuse(absl::StrCat("outputs[", i, "].parameters"), "are not supported by this server");
  }
  C3PO_ASSIGN_OR_RETURN(std::string text, TextOf(request));
  if (!request.inputs(0).parameters().empty())
    return Refuse("inputs[0].parameters", "are not supported by this server");
  question.call.input = std::move(text);
  C3PO_ASSIGN_OR_RETURN(question.call.sampling, SamplingFromProto(sampling, defaults, drawn_seed));
  question.call.max_tokens_given = sampling.has_max_tokens();
  return question;
}

inference::ModelInferResponse TextToKserve(const inference::ModelInferRequest& request, absl::string_view text) {
  inference::ModelInferResponse response;
  response.set_model_name(request.model_name());
  response.set_model_version(kKserveVersion);
  response.set_id(request.id());
  auto* const output = response.add_outputs();
  output->set_name(kOutput);
  output->set_datatype(kBytes);
  output->add_shape(1);
  if (request.raw_input_contents_size() == 0) {
    output->mutable_contents()->add_bytes_contents(text.data(), text.size());
    return response;
  }
  std::string raw;
  for (int shift = 0; shift < 32; shift += 8) raw.push_back(static_cast<char>((text.size() >> shift) & 0xFF));
  absl::StrAppend(&raw, text);
  response.add_raw_output_contents(std::move(raw));
  return response;
}

void AddEnd(const CallSummary& summary, const OptimizationReport& report, inference::ModelInferResponse& response) {
  const auto parameter = [&](const std::string& name) -> InferParameter& {
    return (*response.mutable_parameters())[name];
  };
  parameter("finish_reason").set_string_param(summary.finish_reason == FinishReason::kStop ? "stop" : "length");
  parameter("prompt_tokens").set_int64_param(summary.usage.prompt_tokens);
  parameter("completion_tokens").set_int64_param(summary.usage.completion_tokens);
  parameter("c3po_method").set_string_param(TermOf(report.settings.method).name);
  parameter("c3po_gate").set_string_param(TermOf(report.gate).name);
  if (report.index_generation > 0) parameter("c3po_index_generation").set_int64_param(report.index_generation);
}

inference::ModelMetadataResponse MetadataToKserve(absl::string_view name) {
  inference::ModelMetadataResponse response;
  response.set_name(name.data(), name.size());
  response.add_versions(kKserveVersion);
  response.set_platform(kPlatform);
  auto* const input = response.add_inputs();
  input->set_name(kInput);
  input->set_datatype(kBytes);
  input->add_shape(1);
  auto* const output = response.add_outputs();
  output->set_name(kOutput);
  output->set_datatype(kBytes);
  output->add_shape(1);
  return response;
}

}  // namespace c3po
