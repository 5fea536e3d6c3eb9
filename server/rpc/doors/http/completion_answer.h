#ifndef C3PO_SERVER_RPC_DOORS_HTTP_COMPLETION_ANSWER_H_
#define C3PO_SERVER_RPC_DOORS_HTTP_COMPLETION_ANSWER_H_

// What clients of /v1/completions and /v1/chat/completions are sent, as vLLM writes it.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/pipeline/generation_types.h"

namespace c3po {

// What every answer and chunk of a call begins with, and how tokens are written.
struct AnswerFrame {
  bool chat = false;
  std::string id;       // "cmpl-..." or "chatcmpl-..."
  int64_t created = 0;  // Seconds since 1970.
  std::string model;
  bool logprobs = false;
  int top_logprobs = 0;
  bool tokens_as_ids = false;
  std::function<std::string(int32_t)> token_text;
};

// An answer, or a piece of one.
struct AnswerPiece {
  int index = 0;
  std::string text;
  std::vector<SampledToken> tokens = {};  // Of the log-probabilities, where the frame wants them.
  bool begins_prompt = false;             // tokens[0] is a prompt's first, which follows nothing.
  size_t text_offset = 0;                 // Of tokens[0], in characters of the tokens' texts.
};

// How an answer ended. `stop`: the stop string that ended it; null: none did.
struct AnswerFinish {
  FinishReason reason = FinishReason::kStop;
  const std::string* stop = nullptr;
};

// The characters of the tokens' texts, by which text_offset goes on.
size_t CharactersOf(const AnswerFrame& frame, absl::Span<const SampledToken> tokens);

// --- Streams: one event each ---
std::string RoleChunk(const AnswerFrame& frame, int index);  // Of a chat, first.
std::string TextChunkOf(const AnswerFrame& frame, const AnswerPiece& piece);
std::string FinishChunk(const AnswerFrame& frame, int index, const AnswerFinish& finish);
// The last one, where stream_options.include_usage asks for it.
std::string UsageChunk(const AnswerFrame& frame, const Usage& usage);

// --- Whole answers ---
struct WholeChoice {
  AnswerPiece piece;
  AnswerFinish finish;
};
std::string WholeAnswer(const AnswerFrame& frame, const std::vector<WholeChoice>& choices, const Usage& usage);

// `json`, an object, with the member `name`, whose value is JSON as well.
std::string WithMember(std::string json, absl::string_view name, absl::string_view value);
// For stream_options.continuous_usage_stats.
std::string UsageJson(const Usage& usage);
// The value of the member `c3po`: an OptimizationReport as protobuf's JSON with the names of generation.proto.
std::string ReportJson(const OptimizationReport& report);

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_DOORS_HTTP_COMPLETION_ANSWER_H_
