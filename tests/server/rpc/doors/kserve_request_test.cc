// Every field of KServe's request is read or refused, by the descriptors; parameters are those of c3po.v1.
#include "server/rpc/doors/kserve_request.h"

#include <gmock/gmock.h>
#include <google/protobuf/descriptor.h>
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"

namespace c3po {
namespace {

using ::testing::ElementsAre;

inference::ModelInferRequest Asking(const std::string& text) {
  inference::ModelInferRequest request;
  request.set_model_name("tiny");
  auto* const input = request.add_inputs();
  input->set_name("text_input");
  input->set_datatype("BYTES");
  input->add_shape(1);
  input->mutable_contents()->add_bytes_contents(text);
  return request;
}

inference::ModelInferRequest AskingRaw(const std::string& raw) {
  inference::ModelInferRequest request = Asking("");
  request.mutable_inputs(0)->clear_contents();
  request.add_raw_input_contents(raw);
  return request;
}

absl::StatusOr<KserveQuestion> Read(const inference::ModelInferRequest& request) {
  SamplingParams defaults;
  defaults.max_tokens = 77;
  return QuestionFromKserve(request, "tiny", defaults, 99);
}

void ExpectRefusal(const inference::ModelInferRequest& request, const std::string& message) {
  const absl::Status status = Read(request).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << message;
  EXPECT_TRUE(absl::StartsWith(status.message(), message)) << status;
}

TEST(KserveRequest, TakesTheTextAsContentsOrRaw) {
  for (const auto& request : {Asking("h\xc3\xa9llo"), AskingRaw(std::string("\x06\0\0\0h\xc3\xa9llo", 10))}) {
    const auto question = Read(request);
    ASSERT_TRUE(question.ok()) << question.status();
    EXPECT_EQ(std::get<std::string>(question->call.input), "h\xc3\xa9llo");
    EXPECT_EQ(question->call.sampling.max_tokens, 77);
    EXPECT_FALSE(question->call.max_tokens_given);
    EXPECT_EQ(question->call.sampling.seed, 99U);
    EXPECT_EQ(question->optimization.ByteSizeLong(), 0U);
    EXPECT_TRUE(question->stream);
  }
}

TEST(KserveRequest, RefusesTensorsOfAnotherKind) {
  inference::ModelInferRequest request = Asking("a");
  request.mutable_inputs(0)->set_name("prompt");
  ExpectRefusal(request, "inputs[0].name: ");
  request = Asking("a");
  request.mutable_inputs(0)->set_datatype("INT32");
  ExpectRefusal(request, "inputs[0].datatype: ");
  request = Asking("a");
  request.mutable_inputs(0)->add_shape(2);
  ExpectRefusal(request, "inputs[0].shape: ");
  request = Asking("a");
  request.mutable_inputs(0)->mutable_contents()->add_bytes_contents("b");
  ExpectRefusal(request, "inputs[0].contents.bytes_contents: ");
  ExpectRefusal(Asking("\xff"), "inputs[0].contents.bytes_contents: is not valid UTF-8");
  request = Asking("a");
  *request.add_inputs() = request.inputs(0);
  ExpectRefusal(request, "inputs: ");
  request.clear_inputs();
  ExpectRefusal(request, "inputs: ");
  request = Asking("a");
  request.add_raw_input_contents("");
  ExpectRefusal(request, "raw_input_contents: ");
  request = Asking("a");
  (*request.mutable_inputs(0)->mutable_parameters())["x"];
  ExpectRefusal(request, "inputs[0].parameters: ");
  request = Asking("a");
  request.add_outputs()->set_name("logits");
  ExpectRefusal(request, "outputs[0].name: ");
}

TEST(KserveRequest, RefusesRawContentsThatAreNotOneElement) {
  for (const std::string& raw :
       {std::string(), std::string("\1\0\0", 3), std::string("\2\0\0\0a", 5), std::string("\0\0\0\0a", 5),
        std::string("\xff\xff\xff\xff", 4), std::string("\1\0\0\0a\1\0\0\0b", 10)})
    ExpectRefusal(AskingRaw(raw), "raw_input_contents[0]: ");
  ExpectRefusal(AskingRaw(std::string("\1\0\0\0\xff", 5)), "raw_input_contents[0]: is not valid UTF-8");
}

TEST(KserveRequest, ParametersAreThoseOfC3po) {
  inference::ModelInferRequest request = Asking("a");
  auto& parameters = *request.mutable_parameters();
  parameters["temperature"].set_double_param(0.5);
  parameters["top_k"].set_int64_param(40);
  parameters["max_tokens"].set_uint64_param(5);
  parameters["seed"].set_int64_param(3);
  parameters["stop"].set_string_param("END");
  parameters["ignore_eos"].set_bool_param(true);
  parameters["stream"].set_bool_param(false);
  parameters["triton_enable_empty_final_response"].set_bool_param(true);
  parameters["c3po_collection"].set_string_param("law");
  parameters["c3po_method"].set_string_param("ngd");
  parameters["c3po_steps"].set_int64_param(4);
  parameters["c3po_learning_rate"].set_int64_param(1);
  parameters["c3po_filter"].set_string_param(R"({"must": [{"key": "year", "range": {"gte": 2020}}]})");
  const auto question = Read(request);
  ASSERT_TRUE(question.ok()) << question.status();
  const SamplingParams& sampling = question->call.sampling;
  EXPECT_EQ(sampling.temperature, 0.5);
  EXPECT_EQ(sampling.top_k, 40);
  EXPECT_EQ(sampling.max_tokens, 5);
  EXPECT_TRUE(question->call.max_tokens_given);
  EXPECT_EQ(sampling.seed, 3U);
  EXPECT_THAT(sampling.stop, ElementsAre("END"));
  EXPECT_TRUE(sampling.ignore_eos);
  EXPECT_FALSE(question->stream);
  EXPECT_EQ(question->optimization.collection(), "law");
  EXPECT_EQ(question->optimization.method(), v1::METHOD_NEIGHBORHOOD_GRADIENT_DESCENT);
  EXPECT_EQ(question->optimization.steps(), 4U);
  EXPECT_EQ(question->optimization.learning_rate(), 1);
  ASSERT_EQ(question->optimization.filter().must_size(), 1);
  EXPECT_EQ(question->optimization.filter().must(0).range().gte(), 2020);
}

TEST(KserveRequest, RefusesParametersByTheirNames) {
  const std::vector<std::pair<std::string, inference::InferParameter>> wrong = [] {
    std::vector<std::pair<std::string, inference::InferParameter>> all;
    const auto add = [&](const char* key) -> inference::InferParameter& {
      return all.emplace_back(key, inference::InferParameter()).second;
    };
    add("temperatur").set_double_param(1);
    add("temperature").set_string_param("1");
    add("top_k").set_double_param(1.5);
    add("top_k").set_int64_param(-1);
    add("top_k").set_int64_param(int64_t{1} << 32);
    add("ignore_eos").set_int64_param(1);
    add("stop").set_int64_param(1);
    add("stream").set_string_param("yes");
    add("n").set_int64_param(2);
    add("logprobs").set_int64_param(2);
    add("logit_bias").set_string_param("{}");
    add("c3po_nothing").set_int64_param(1);
    add("c3po_gate").set_bool_param(true);
    add("c3po_filter").set_bool_param(true);
    add("c3po_filter").set_string_param("{");
    add("c3po_filter").set_string_param(R"({"must": [{"wings": 1}]})");
    add("c3po_critical_layers").set_int64_param(1);
    add("c3po_method").set_string_param("magic");
    add("max_tokens");
    return all;
  }();
  for (const auto& [key, value] : wrong) {
    inference::ModelInferRequest request = Asking("a");
    (*request.mutable_parameters())[key] = value;
    ExpectRefusal(request, "parameters." + key + ": ");
  }
}

TEST(KserveRequest, AModelsNameMayChooseTheCollection) {
  inference::ModelInferRequest request = Asking("a");
  request.set_model_name("tiny@law");
  request.set_model_version("1");
  auto question = Read(request);
  ASSERT_TRUE(question.ok()) << question.status();
  EXPECT_EQ(question->optimization.collection(), "law");
  (*request.mutable_parameters())["c3po_collection"].set_string_param("law");
  EXPECT_TRUE(Read(request).ok());
  (*request.mutable_parameters())["c3po_collection"].set_string_param("other");
  ExpectRefusal(request, "model_name: ");
  request = Asking("a");
  request.set_model_name("tiny@");
  ExpectRefusal(request, "model_name: ");
  for (const char* name : {"", "tin", "tiny2", "other@law"}) {
    request.set_model_name(name);
    EXPECT_TRUE(absl::IsNotFound(Read(request).status())) << name;
  }
  request = Asking("a");
  request.set_model_version("2");
  EXPECT_TRUE(absl::IsNotFound(Read(request).status()));
}

// A field of a newer protocol has to be looked at.
TEST(KserveRequest, KnowsEveryFieldOfTheRequest) {
  const auto names = [](const google::protobuf::Descriptor& type) {
    std::set<std::string> all;
    for (int i = 0; i < type.field_count(); ++i) all.insert(type.field(i)->name());
    return all;
  };
  using Request = inference::ModelInferRequest;
  EXPECT_EQ(names(*Request::descriptor()), (std::set<std::string>{"model_name", "model_version", "id", "parameters",
                                                                  "inputs", "outputs", "raw_input_contents"}));
  EXPECT_EQ(names(*Request::InferInputTensor::descriptor()),
            (std::set<std::string>{"name", "datatype", "shape", "parameters", "contents"}));
  EXPECT_EQ(names(*Request::InferRequestedOutputTensor::descriptor()), (std::set<std::string>{"name", "parameters"}));
  EXPECT_EQ(names(*inference::InferParameter::descriptor()),
            (std::set<std::string>{"bool_param", "int64_param", "string_param", "double_param", "uint64_param"}));
}

TEST(KserveRequest, AnswersAsTheRequestAsked) {
  inference::ModelInferRequest request = Asking("a");
  request.set_id("7");
  const auto plain = TextToKserve(request, "text");
  EXPECT_EQ(plain.id(), "7");
  EXPECT_EQ(plain.model_name(), "tiny");
  EXPECT_EQ(plain.outputs(0).name(), "text_output");
  EXPECT_THAT(plain.outputs(0).contents().bytes_contents(), ElementsAre("text"));
  EXPECT_EQ(plain.raw_output_contents_size(), 0);
  const auto raw = TextToKserve(AskingRaw(std::string("\1\0\0\0a", 5)), std::string(300, 'x'));
  EXPECT_THAT(raw.raw_output_contents(), ElementsAre(std::string("\x2c\x01\0\0", 4) + std::string(300, 'x')));
  EXPECT_FALSE(raw.outputs(0).has_contents());
}

}  // namespace
}  // namespace c3po
