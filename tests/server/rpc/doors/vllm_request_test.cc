// Every field of vLLM's messages, by the descriptors: what is neither mapped nor refused here fails, so that a newer
// .proto has to be looked at.
#include "server/rpc/doors/vllm_request.h"

#include <gmock/gmock.h>
#include <google/protobuf/descriptor.h>
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace c3po {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using ::testing::ElementsAre;
using vllm_engine::GenerateRequest;

constexpr int32_t kEndTokens[] = {7, 256};
const VllmContext kContext{.context_window = 512, .end_tokens = kEndTokens, .drawn_seed = 99};

GenerateRequest Tokenized() {
  GenerateRequest request;
  request.mutable_tokenized()->add_input_ids(5);
  return request;
}

// Gives `field` some value that is not its default.
void Set(Message& message, const FieldDescriptor& field) {
  const auto& reflection = *message.GetReflection();
  if (field.is_map()) {
    Message& entry = *reflection.AddMessage(&message, &field);
    Set(entry, *field.message_type()->field(0));
    Set(entry, *field.message_type()->field(1));
    return;
  }
  const bool many = field.is_repeated();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_FLOAT:
      return many ? reflection.AddFloat(&message, &field, 0.5F) : reflection.SetFloat(&message, &field, 0.5F);
    case FieldDescriptor::CPPTYPE_UINT32:
      return many ? reflection.AddUInt32(&message, &field, 7) : reflection.SetUInt32(&message, &field, 7);
    case FieldDescriptor::CPPTYPE_INT32:
      return many ? reflection.AddInt32(&message, &field, 7) : reflection.SetInt32(&message, &field, 7);
    case FieldDescriptor::CPPTYPE_BOOL:
      return many ? reflection.AddBool(&message, &field, true) : reflection.SetBool(&message, &field, true);
    case FieldDescriptor::CPPTYPE_STRING:
      return many ? reflection.AddString(&message, &field, "x") : reflection.SetString(&message, &field, "x");
    case FieldDescriptor::CPPTYPE_MESSAGE: {
      // Present is enough, empty or not.
      many ? reflection.AddMessage(&message, &field) : reflection.MutableMessage(&message, &field);
      return;
    }
    default:
      FAIL() << field.full_name() << ": a kind of field that the test does not know";
  }
}

enum class Fate { kMapped, kRefused, kNoEffect };

// What a call is made of, as far as a field can change it.
std::string Told(const GenerateCall& call) {
  const SamplingParams& s = call.sampling;
  std::string text = absl::StrCat(s.temperature, "|", s.top_k, "|", s.top_p, "|", s.min_p, "|", s.repetition_penalty,
                                  "|", s.seed, "|", s.n, "|", s.max_tokens, "|", s.logprobs, "|", s.ignore_eos, "|",
                                  call.max_tokens_given, "|", call.skip_special_tokens);
  for (const std::string& stop : s.stop) absl::StrAppend(&text, "|", stop);
  if (call.form) {
    absl::StrAppend(&text, "|form ", static_cast<int>(call.form->kind), call.form->text);
    for (const std::string& one : call.form->texts) absl::StrAppend(&text, "|", one);
  }
  for (const LogitBias& bias : s.logit_bias) absl::StrAppend(&text, "|", bias.token_id, "=", bias.bias);
  return text;
}

void ExpectFates(const Descriptor& type, const std::map<std::string, Fate>& fates, const std::string& prefix,
                 bool in_sampling) {
  const auto plain = GenerateFromVllm(Tokenized(), kContext);
  ASSERT_TRUE(plain.ok()) << plain.status();
  std::set<std::string> known;
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor& field = *type.field(i);
    const auto fate = fates.find(field.name());
    ASSERT_NE(fate, fates.end()) << field.full_name() << " is new: map it, or say here that it is refused";
    known.insert(field.name());
    GenerateRequest request = Tokenized();
    Set(in_sampling ? static_cast<Message&>(*request.mutable_sampling_params()) : request, field);
    const auto call = GenerateFromVllm(request, kContext);
    if (fate->second == Fate::kRefused) {
      ASSERT_EQ(call.status().code(), absl::StatusCode::kInvalidArgument) << field.full_name();
      EXPECT_TRUE(absl::StartsWith(call.status().message(), absl::StrCat(prefix, field.name(), ": "))) << call.status();
      continue;
    }
    ASSERT_TRUE(call.ok()) << field.full_name() << ": " << call.status();
    if (fate->second == Fate::kMapped) {
      EXPECT_NE(Told(*call), Told(*plain)) << field.full_name() << " changes nothing";
    } else {
      EXPECT_EQ(Told(*call), Told(*plain)) << field.full_name();
    }
  }
  EXPECT_EQ(known.size(), fates.size()) << "a field is gone";
}

TEST(VllmRequest, MapsOrRefusesEveryFieldOfSamplingParams) {
  ExpectFates(*vllm_engine::SamplingParams::descriptor(),
              {{"temperature", Fate::kMapped},
               {"top_p", Fate::kMapped},
               {"top_k", Fate::kMapped},
               {"min_p", Fate::kMapped},
               {"frequency_penalty", Fate::kRefused},
               {"presence_penalty", Fate::kRefused},
               {"repetition_penalty", Fate::kMapped},
               {"max_tokens", Fate::kMapped},
               {"min_tokens", Fate::kRefused},
               {"stop", Fate::kMapped},
               {"stop_token_ids", Fate::kNoEffect},  // 7 is an end token.
               {"skip_special_tokens", Fate::kMapped},
               {"spaces_between_special_tokens", Fate::kNoEffect},
               {"ignore_eos", Fate::kMapped},
               {"n", Fate::kMapped},
               {"logprobs", Fate::kMapped},
               {"prompt_logprobs", Fate::kRefused},
               {"seed", Fate::kMapped},
               {"include_stop_str_in_output", Fate::kNoEffect},
               {"logit_bias", Fate::kMapped},
               {"truncate_prompt_tokens", Fate::kRefused},
               {"grammar_from_first_token", Fate::kNoEffect},  // It does so anyway.
               {"json_schema", Fate::kMapped},
               {"regex", Fate::kMapped},
               {"grammar", Fate::kMapped},
               {"structural_tag", Fate::kRefused},
               {"json_object", Fate::kMapped},
               {"choice", Fate::kMapped}},
              "sampling_params.", /*in_sampling=*/true);
}

TEST(VllmRequest, MapsOrRefusesEveryFieldOfTheRequest) {
  ExpectFates(*GenerateRequest::descriptor(),
              {{"request_id", Fate::kNoEffect},  // It is the context's.
               {"tokenized", Fate::kNoEffect},   // Set by every request here.
               {"text", Fate::kNoEffect},        // See below.
               {"sampling_params", Fate::kNoEffect},
               {"stream", Fate::kNoEffect},  // The reactor's.
               {"kv_transfer_params", Fate::kRefused},
               {"kv_transfer_params_json", Fate::kRefused},
               {"mm_inputs", Fate::kRefused},
               {"extra_mm_inputs", Fate::kRefused},
               {"data_parallel_rank", Fate::kRefused},  // 7; 0 is taken.
               {"media_refs", Fate::kRefused}},
              "", /*in_sampling=*/false);
  GenerateRequest request = Tokenized();
  request.set_data_parallel_rank(0);
  EXPECT_TRUE(GenerateFromVllm(request, kContext).ok());
}

TEST(VllmRequest, TakesIdsOrText) {
  GenerateRequest request = Tokenized();
  request.mutable_tokenized()->add_input_ids(6);
  request.mutable_tokenized()->set_original_text("is for reference only");
  auto call = GenerateFromVllm(request, kContext);
  ASSERT_TRUE(call.ok()) << call.status();
  EXPECT_THAT(std::get<std::vector<int32_t>>(call->input), ElementsAre(5, 6));
  request.set_text("hello");
  call = GenerateFromVllm(request, kContext);
  ASSERT_TRUE(call.ok()) << call.status();
  EXPECT_EQ(std::get<std::string>(call->input), "hello");
  EXPECT_EQ(GenerateFromVllm(GenerateRequest(), kContext).status().message(),
            "tokenized: one of tokenized and text must be set");
  request.mutable_tokenized()->add_input_ids(4);
  request.mutable_tokenized()->add_input_ids(1U << 31);
  EXPECT_TRUE(absl::StartsWith(GenerateFromVllm(request, kContext).status().message(), "tokenized.input_ids[1]: "));
}

TEST(VllmRequest, WhatIsLeftOutHasTheMeaningOfVllm) {
  const auto call = GenerateFromVllm(Tokenized(), kContext);
  ASSERT_TRUE(call.ok());
  EXPECT_EQ(call->sampling.temperature, 1);
  EXPECT_EQ(call->sampling.top_p, 1);
  EXPECT_EQ(call->sampling.top_k, 0);
  EXPECT_EQ(call->sampling.repetition_penalty, 1);
  EXPECT_EQ(call->sampling.n, 1);
  EXPECT_EQ(call->sampling.max_tokens, 512);
  EXPECT_FALSE(call->max_tokens_given);
  EXPECT_EQ(call->sampling.seed, 99U);
  EXPECT_EQ(call->sampling.logprobs, -1);
  EXPECT_FALSE(call->skip_special_tokens);
}

SamplingParams Sampling(const vllm_engine::SamplingParams& params) {
  GenerateRequest request = Tokenized();
  *request.mutable_sampling_params() = params;
  const auto call = GenerateFromVllm(request, kContext);
  EXPECT_TRUE(call.ok()) << call.status();
  return call.ok() ? call->sampling : SamplingParams();
}

std::string Refusal(const vllm_engine::SamplingParams& params) {
  GenerateRequest request = Tokenized();
  *request.mutable_sampling_params() = params;
  return std::string(GenerateFromVllm(request, kContext).status().message());
}

TEST(VllmRequest, ValuesAreTheRequestsOwn) {
  vllm_engine::SamplingParams params;
  params.set_temperature(0.25F);
  params.set_top_p(0.75F);
  params.set_top_k(40);
  params.set_min_p(0.125F);
  params.set_repetition_penalty(1.5F);
  params.set_max_tokens(30);
  params.add_stop("END");
  params.set_n(3);
  params.set_logprobs(5);
  params.set_seed(-2);
  (*params.mutable_logit_bias())[9] = -1;
  (*params.mutable_logit_bias())[3] = 2;
  const SamplingParams sampling = Sampling(params);
  EXPECT_EQ(sampling.temperature, 0.25);
  EXPECT_EQ(sampling.top_p, 0.75);
  EXPECT_EQ(sampling.top_k, 40);
  EXPECT_EQ(sampling.min_p, 0.125);
  EXPECT_EQ(sampling.repetition_penalty, 1.5);
  EXPECT_EQ(sampling.max_tokens, 30);
  EXPECT_THAT(sampling.stop, ElementsAre("END"));
  EXPECT_EQ(sampling.n, 3);
  EXPECT_EQ(sampling.logprobs, 5);
  EXPECT_EQ(sampling.seed, static_cast<uint64_t>(-2));
  ASSERT_EQ(sampling.logit_bias.size(), 2U);
  EXPECT_EQ(sampling.logit_bias[0].token_id, 3);
  EXPECT_EQ(sampling.logit_bias[0].bias, 2);
  EXPECT_EQ(sampling.logit_bias[1].token_id, 9);
}

TEST(VllmRequest, EdgesAreThoseOfVllm) {
  vllm_engine::SamplingParams params;
  params.set_temperature(9e-6F);
  params.set_seed(-1);
  params.set_logprobs(0);
  const SamplingParams sampling = Sampling(params);
  EXPECT_EQ(sampling.temperature, 0);
  EXPECT_EQ(sampling.seed, 99U);
  EXPECT_EQ(sampling.logprobs, 0);
  params.set_temperature(-1);
  EXPECT_EQ(Sampling(params).temperature, -1);  // For the pipeline to refuse.
  params.set_logprobs(-1);
  EXPECT_TRUE(absl::StartsWith(Refusal(params), "sampling_params.logprobs: is -1")) << Refusal(params);
  params.set_logprobs(21);
  EXPECT_TRUE(absl::StartsWith(Refusal(params), "sampling_params.logprobs: is 21"));
}

TEST(VllmRequest, TakesStopTokensThatEndAnswersAnyway) {
  vllm_engine::SamplingParams params;
  params.add_stop_token_ids(256);
  EXPECT_EQ(Refusal(params), "");
  params.add_stop_token_ids(8);
  EXPECT_TRUE(absl::StartsWith(Refusal(params), "sampling_params.stop_token_ids[1]: 8 is none")) << Refusal(params);
  params.clear_stop_token_ids();
  params.add_stop_token_ids(7);
  params.set_ignore_eos(true);
  EXPECT_TRUE(absl::StartsWith(Refusal(params), "sampling_params.stop_token_ids[0]: 7 ends")) << Refusal(params);
}

TEST(VllmRequest, ChunksCarryTokensAndWhatWasAskedOfTheirLogprobs) {
  TextChunk chunk;
  chunk.answer = 2;
  chunk.prompt_tokens = 11;
  chunk.text = "x";
  chunk.tokens = {{5, -0.5F, {{5, -0.5F}, {6, -1.5F}}}};
  const auto without = ChunkToVllm(chunk, -1);
  EXPECT_THAT(without.token_ids(), ElementsAre(5));
  EXPECT_EQ(without.index(), 2U);
  EXPECT_EQ(without.prompt_tokens(), 11U);
  EXPECT_EQ(without.completion_tokens(), 1U);
  EXPECT_FALSE(without.has_output_logprobs());
  const auto chosen = ChunkToVllm(chunk, 0);
  EXPECT_THAT(chosen.output_logprobs().token_logprobs(), ElementsAre(-0.5F));
  EXPECT_EQ(chosen.output_logprobs().top_logprobs_size(), 0);
  const auto top = ChunkToVllm(chunk, 2);
  EXPECT_THAT(top.output_logprobs().token_ids(), ElementsAre(5));
  EXPECT_THAT(top.output_logprobs().top_logprobs(0).token_ids(), ElementsAre(5, 6));
  EXPECT_THAT(top.output_logprobs().top_logprobs(0).values(), ElementsAre(-0.5F, -1.5F));
}

TEST(VllmRequest, TheEndNamesWhatStoppedTheAnswer) {
  const Usage usage{.prompt_tokens = 20, .completion_tokens = 9, .cached_tokens = 16};
  const std::vector<std::string> stops = {"a", "b"};
  const auto stopped = EndToVllm(1, {FinishReason::kStop, 4, 1}, usage, stops);
  EXPECT_EQ(stopped.index(), 1U);
  EXPECT_EQ(stopped.finish_reason(), "stop");
  EXPECT_EQ(stopped.matched_stop_str(), "b");
  EXPECT_EQ(stopped.prompt_tokens(), 20U);
  EXPECT_EQ(stopped.completion_tokens(), 4U);
  EXPECT_EQ(stopped.cached_tokens(), 16U);
  const auto full = EndToVllm(0, {FinishReason::kLength, 4, std::nullopt}, usage, stops);
  EXPECT_EQ(full.finish_reason(), "length");
  EXPECT_EQ(full.matched_stop_case(), vllm_engine::GenerateComplete::MATCHED_STOP_NOT_SET);
}

TEST(VllmRequest, EmbedsIds) {
  vllm_engine::EmbedRequest request;
  EXPECT_EQ(IdsFromVllm(request).status().message(), "tokenized.input_ids: must not be empty");
  request.mutable_tokenized()->add_input_ids(3);
  const auto ids = IdsFromVllm(request);
  ASSERT_TRUE(ids.ok());
  EXPECT_THAT(*ids, ElementsAre(3));
}

}  // namespace
}  // namespace c3po
