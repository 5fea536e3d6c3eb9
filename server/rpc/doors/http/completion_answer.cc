#include "server/rpc/doors/http/completion_answer.h"

#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/rpc/convert.h"

namespace c3po {
namespace {

using Json = nlohmann::ordered_json;

constexpr float kLogprobMin = -9999;  // vLLM's, as JSON has no infinity.

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

size_t Characters(absl::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

std::string WordOf(const AnswerFrame& frame, int32_t token) {
  return frame.tokens_as_ids ? absl::StrCat("token_id:", token) : frame.token_text(token);
}

Json LogprobOf(float logprob) { return std::max(logprob, kLogprobMin); }

Json FrameJson(const AnswerFrame& frame, bool chunk) {
  const char* const object = !frame.chat ? "text_completion" : chunk ? "chat.completion.chunk" : "chat.completion";
  return {{"id", frame.id}, {"object", object}, {"created", frame.created}, {"model", frame.model}};
}

Json ReasonOf(FinishReason reason) { return reason == FinishReason::kStop ? "stop" : "length"; }

void AddFinish(const AnswerFinish& finish, Json& choice) {
  choice["finish_reason"] = ReasonOf(finish.reason);
  choice["stop_reason"] = finish.stop == nullptr ? Json(nullptr) : Json(*finish.stop);
}

Json ChatToken(const AnswerFrame& frame, int32_t token, float logprob) {
  const std::string text = frame.token_text(token);
  Json bytes = Json::array();
  for (const char c : text) bytes.push_back(static_cast<unsigned char>(c));
  return {{"token", WordOf(frame, token)}, {"logprob", LogprobOf(logprob)}, {"bytes", std::move(bytes)}};
}

Json ChatLogprobs(const AnswerFrame& frame, absl::Span<const SampledToken> tokens) {
  Json content = Json::array();
  for (const SampledToken& token : tokens) {
    Json top = Json::array();
    for (const TokenLogprob& one : token.top_logprobs) top.push_back(ChatToken(frame, one.token_id, one.logprob));
    Json position = ChatToken(frame, token.token_id, token.logprob);
    position["top_logprobs"] = std::move(top);
    content.push_back(std::move(position));
  }
  return {{"content", std::move(content)}};
}

// The token itself, and as many of the likeliest as were asked for.
Json TopOf(const AnswerFrame& frame, const SampledToken& token) {
  Json top = {{WordOf(frame, token.token_id), LogprobOf(token.logprob)}};
  for (const TokenLogprob& one : token.top_logprobs) top[WordOf(frame, one.token_id)] = LogprobOf(one.logprob);
  return top;
}

Json TextLogprobs(const AnswerFrame& frame, const AnswerPiece& piece) {
  Json offsets = Json::array(), logprobs = Json::array(), words = Json::array(), tops = Json::array();
  size_t offset = piece.text_offset;
  for (size_t i = 0; i < piece.tokens.size(); ++i) {
    const SampledToken& token = piece.tokens[i];
    const bool known = i > 0 || !piece.begins_prompt;
    words.push_back(WordOf(frame, token.token_id));
    offsets.push_back(offset);
    logprobs.push_back(known ? LogprobOf(token.logprob) : Json(nullptr));
    tops.push_back(known ? TopOf(frame, token) : Json(nullptr));
    offset += Characters(words.back().get_ref<const std::string&>());
  }
  return {{"text_offset", std::move(offsets)},
          {"token_logprobs", std::move(logprobs)},
          {"tokens", std::move(words)},
          {"top_logprobs", std::move(tops)}};
}

Json LogprobsOf(const AnswerFrame& frame, const AnswerPiece& piece) {
  if (!frame.logprobs) return nullptr;
  return frame.chat ? ChatLogprobs(frame, piece.tokens) : TextLogprobs(frame, piece);
}

Json UsageOf(const Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}}}};
}

std::string ChunkWith(const AnswerFrame& frame, Json choice) {
  Json chunk = FrameJson(frame, /*chunk=*/true);
  chunk["choices"] = Json::array({std::move(choice)});
  return Dump(chunk);
}

Json WholeChoiceJson(const AnswerFrame& frame, const WholeChoice& whole) {
  Json choice = {{"index", whole.piece.index}};
  if (frame.chat) {
    choice["message"] = {
        {"role", "assistant"}, {"content", whole.piece.text}, {"refusal", nullptr}, {"tool_calls", Json::array()}};
  } else {
    choice["text"] = whole.piece.text;
  }
  choice["logprobs"] = LogprobsOf(frame, whole.piece);
  AddFinish(whole.finish, choice);
  return choice;
}

}  // namespace

size_t CharactersOf(const AnswerFrame& frame, absl::Span<const SampledToken> tokens) {
  size_t characters = 0;
  for (const SampledToken& token : tokens) characters += Characters(WordOf(frame, token.token_id));
  return characters;
}

std::string RoleChunk(const AnswerFrame& frame, int index) {
  return ChunkWith(frame, {{"index", index},
                           {"delta", {{"role", "assistant"}, {"content", ""}}},
                           {"logprobs", nullptr},
                           {"finish_reason", nullptr}});
}

std::string TextChunkOf(const AnswerFrame& frame, const AnswerPiece& piece) {
  Json choice = {{"index", piece.index}};
  if (frame.chat) {
    choice["delta"] = {{"content", piece.text}};
  } else {
    choice["text"] = piece.text;
  }
  choice["logprobs"] = LogprobsOf(frame, piece);
  choice["finish_reason"] = nullptr;
  return ChunkWith(frame, std::move(choice));
}

std::string FinishChunk(const AnswerFrame& frame, int index, const AnswerFinish& finish) {
  Json choice = {{"index", index}};
  if (frame.chat) {
    choice["delta"] = Json::object();
  } else {
    choice["text"] = "";
  }
  choice["logprobs"] = nullptr;
  AddFinish(finish, choice);
  return ChunkWith(frame, std::move(choice));
}

std::string UsageChunk(const AnswerFrame& frame, const Usage& usage) {
  Json chunk = FrameJson(frame, /*chunk=*/true);
  chunk["choices"] = Json::array();
  chunk["usage"] = UsageOf(usage);
  return Dump(chunk);
}

std::string WholeAnswer(const AnswerFrame& frame, const std::vector<WholeChoice>& choices, const Usage& usage) {
  Json answer = FrameJson(frame, /*chunk=*/false);
  Json list = Json::array();
  for (const WholeChoice& choice : choices) list.push_back(WholeChoiceJson(frame, choice));
  answer["choices"] = std::move(list);
  answer["usage"] = UsageOf(usage);
  return Dump(answer);
}

std::string WithMember(std::string json, absl::string_view name, absl::string_view value) {
  json.pop_back();
  absl::StrAppend(&json, json.size() > 1 ? "," : "", "\"", name, "\":", value, "}");
  return json;
}

std::string UsageJson(const Usage& usage) { return Dump(UsageOf(usage)); }

std::string ReportJson(const OptimizationReport& report) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string json;
  const auto status = google::protobuf::util::MessageToJsonString(ReportToProto(report), &json, options);
  return status.ok() ? json : "null";
}

}  // namespace c3po
