#ifndef C3PO_SERVER_RPC_DOORS_HTTP_COMPLETION_CALL_H_
#define C3PO_SERVER_RPC_DOORS_HTTP_COMPLETION_CALL_H_

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "index/base/mutex.h"
#include "server/pipeline/generation_types.h"
#include "server/rpc/doors/http/completion_answer.h"
#include "server/rpc/doors/http/completion_request.h"
#include "server/rpc/doors/http/http_call.h"

namespace c3po {

// POST /v1/completions or /v1/chat/completions. Each prompt is a call of the pipeline, kPromptsAtOnce of one request at
// a time; what they cost is charged together. The first that fails ends the others. The report on the optimization is
// the member `c3po` of the whole answer (of several prompts a list), or of a prompt's first event; it is there where
// something was optimized, or the request said anything of it.
class CompletionCall final : public HttpCall {
 public:
  static constexpr int kPromptsAtOnce = 8;

  CompletionCall(const HttpRequest& request, const ServiceParts& parts, bool chat);

 protected:
  absl::Status Begin(const std::string& body) override;
  absl::Status InClientsWords(const absl::Status& status) const override;

 private:
  class Listener;

  struct Choice {
    bool begun = false;
    AnswerPiece piece;  // Streams: of the next event.
    int tokens = 0;
  };
  struct Prompt {
    std::string echo;                  // Its text, where the request wants it.
    std::string report;                // JSON; empty: not to be told, or it was.
    std::vector<SampledToken> tokens;  // With their log-probabilities, where the request wants them.
    std::vector<Choice> choices;
    CallSummary summary;
  };

  absl::StatusOr<CompletionRequest> Read(const std::string& body) const;
  absl::Status BeginSeen();  // Once the references are as new as the request wants them.
  std::string EchoOf(const PromptInput& input) const;
  void SubmitMore();

  // What the pipeline says of one prompt.
  void OnOptimization(size_t prompt, const OptimizationReport& report);
  void OnPrompt(size_t prompt, std::vector<SampledToken> tokens);
  void OnChunk(size_t prompt, TextChunk chunk);
  void OnDone(size_t prompt, const absl::Status& status, const CallSummary& summary);

  // The choice's echo, before its first piece.
  void BeginChoice(Prompt& prompt, Choice& choice) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SendChunk(Prompt& prompt, std::string json, const Usage& usage) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SendPiece(Prompt& prompt, Choice& choice) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SendEnds(Prompt& prompt) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AnswerWhole() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  AnswerFinish FinishOf(const AnswerEnd& end) const;
  Usage UsageOfAll() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Ends the call with it once the prompts that run have.
  void Fail(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const bool chat_;
  const std::string header_id_;
  // Of the request; set before the pipeline has anything of it.
  CompletionRequest request_;
  GenerateCall model_call_;  // But for the input.
  AnswerFrame frame_;
  Mutex mutex_;  // Prompts are answered by different threads.
  std::deque<Prompt> prompts_ ABSL_GUARDED_BY(mutex_);
  size_t next_ ABSL_GUARDED_BY(mutex_) = 0;  // To be submitted.
  int running_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t kept_bytes_ ABSL_GUARDED_BY(mutex_) = 0;  // Of pieces that wait for a whole answer, counted as the call's.
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_DOORS_HTTP_COMPLETION_CALL_H_
