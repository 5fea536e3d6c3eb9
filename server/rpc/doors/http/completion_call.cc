#include "server/rpc/doors/http/completion_call.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "index/base/escaped_exception.h"
#include "index/base/status_macros.h"
#include "server/rpc/doors/http/ignored_fields.h"
#include "server/rpc/on_worker.h"
#include "server/rpc/profiles.h"

namespace c3po {

// Of one prompt. Holds the call until the pipeline lets go of it.
class CompletionCall::Listener final : public GenerationListener {
 public:
  Listener(std::shared_ptr<CompletionCall> call, size_t prompt) : call_(std::move(call)), prompt_(prompt) {}
  void OnOptimization(const OptimizationReport& report) override { call_->OnOptimization(prompt_, report); }
  void OnPrompt(std::vector<SampledToken> tokens) override { call_->OnPrompt(prompt_, std::move(tokens)); }
  void OnChunk(TextChunk chunk) override { call_->OnChunk(prompt_, std::move(chunk)); }
  void OnScores(std::vector<ContinuationScore>) override {}
  void OnDone(const absl::Status& status, const CallSummary& summary) override {
    call_->OnDone(prompt_, status, summary);
  }

 private:
  const std::shared_ptr<CompletionCall> call_;
  const size_t prompt_;
};

CompletionCall::CompletionCall(const HttpRequest& request, const ServiceParts& parts, bool chat)
    : HttpCall(request, parts, chat ? Metrics::Rpc::kOpenAiChatCompletions : Metrics::Rpc::kOpenAiCompletions),
      chat_(chat),
      header_id_(request.request_id) {}

absl::Status CompletionCall::InClientsWords(const absl::Status& status) const {
  return InTheirWords(request_.constraint ? InWordsOf(*request_.constraint, status) : status, CompletionFieldNames());
}

absl::StatusOr<CompletionRequest> CompletionCall::Read(const std::string& body) const {
  const ModelShape& shape = parts().pipeline_parts.model->shape();
  const ServedModel served{shape.name, shape.context_window, shape.eos_token_ids, DrawSeed(),
                           parts().pipeline_parts.limits.continuations_max};
  return chat_ ? ReadChatRequest(body, served) : ReadTextRequest(body, served);
}

// What cannot be decoded the pipeline refuses.
std::string CompletionCall::EchoOf(const PromptInput& input) const {
  if (const auto* text = std::get_if<std::string>(&input)) return *text;
  const PromptText& text = *parts().pipeline_parts.text;
  const auto* ids = std::get_if<std::vector<int32_t>>(&input);
  if (ids == nullptr) return "";
  const bool known = std::all_of(ids->begin(), ids->end(), [&](int32_t id) { return id < text.ids_end(); });
  return known ? text.tokenizer()->Decode(*ids, /*skip_special_tokens=*/false) : "";
}

absl::Status CompletionCall::Begin(const std::string& body) {
  C3PO_ASSIGN_OR_RETURN(request_, Read(body));
  model_call_.context = call().Context(request_.request_id.empty() ? header_id_ : request_.request_id);
  LogIgnoredFields(request_.unknown, call().request_id());
  // Who asks for the log-probabilities of a text asks for the model's own.
  if (!request_.optimizes && request_.sampling.prompt_logprobs >= 0) request_.optimization.set_method(v1::METHOD_NONE);
  const auto self = std::static_pointer_cast<CompletionCall>(shared_from_this());
  const auto next = [self] { return self->BeginSeen(); };
  const auto failed = [self](const absl::Status& status) { self->End(status); };
  return OnceSeen(parts(), kOptimizationsGeneration, request_.optimization.min_index_generation(), model_call_.context,
                  next, failed);
}

absl::Status CompletionCall::BeginSeen() {
  const absl::string_view kind = chat_ ? "chatcmpl-" : "cmpl-";
  C3PO_ASSIGN_OR_RETURN(model_call_.optimization,
                        parts().profiles->Resolve(request_.optimization, call().collections()));
  call().NoteCollection(model_call_.optimization.collection);
  model_call_.sampling = request_.sampling;
  if (request_.constraint) model_call_.form = request_.constraint->form;
  model_call_.max_tokens_given = request_.max_tokens_given;
  model_call_.skip_special_tokens = request_.skip_special_tokens;
  frame_.chat = chat_;
  frame_.id = absl::StrCat(kind, call().request_id());
  frame_.created = absl::ToUnixSeconds(absl::Now());
  frame_.model = request_.model;
  frame_.logprobs = request_.sampling.logprobs >= 0;
  frame_.tokens_as_ids = request_.tokens_as_ids;
  frame_.token_text = [tokenizer = parts().pipeline_parts.text->tokenizer()](int32_t id) {
    return tokenizer->TokenText(id);
  };
  {
    const MutexLock lock(mutex_);
    for (const PromptInput& input : request_.prompts) {
      Prompt& prompt = prompts_.emplace_back();
      prompt.choices.resize(static_cast<size_t>(std::max(1, request_.sampling.n)));
      if (request_.echo) prompt.echo = EchoOf(input);
      for (size_t a = 0; a < prompt.choices.size(); ++a)
        prompt.choices[a].piece.index = static_cast<int>((prompts_.size() - 1) * prompt.choices.size() + a);
    }
  }
  SubmitMore();
  return absl::OkStatus();
}

void CompletionCall::SubmitMore() {
  while (true) {
    size_t prompt = 0;
    {
      const MutexLock lock(mutex_);
      if (!failure_.ok() || next_ == prompts_.size() || running_ == kPromptsAtOnce) return;
      prompt = next_++;
      ++running_;
    }
    GenerateCall generate = model_call_;
    generate.input = std::move(request_.prompts[prompt]);
    auto self = std::static_pointer_cast<CompletionCall>(shared_from_this());
    const auto listener = std::make_shared<Listener>(std::move(self), prompt);
    const absl::Status taken = parts().pipeline->Generate(std::move(generate), listener);
    if (!taken.ok()) listener->OnDone(taken, CallSummary());
  }
}

void CompletionCall::Fail(const absl::Status& status) {
  if (!failure_.ok()) return;
  failure_ = status;
  call().Cancel();
}

void CompletionCall::OnOptimization(size_t prompt, const OptimizationReport& report) {
  const MutexLock lock(mutex_);
  call().NoteReport(report);
  if (request_.optimizes || report.settings.method != Method::kNone) prompts_[prompt].report = ReportJson(report);
}

void CompletionCall::OnPrompt(size_t prompt, std::vector<SampledToken> tokens) {
  const MutexLock lock(mutex_);
  prompts_[prompt].tokens = std::move(tokens);
}

void CompletionCall::BeginChoice(Prompt& prompt, Choice& choice) {
  if (std::exchange(choice.begun, true)) return;
  if (chat_) {
    if (request_.stream)
      SendChunk(prompt, RoleChunk(frame_, choice.piece.index), {prompt.summary.usage.prompt_tokens, 0, 0});
    return;
  }
  choice.piece.text = prompt.echo;
  choice.piece.tokens = prompt.tokens;
  choice.piece.begins_prompt = !prompt.tokens.empty();
}

void CompletionCall::OnChunk(size_t index, TextChunk chunk) {
  const MutexLock lock(mutex_);
  if (!failure_.ok()) return;
  Prompt& prompt = prompts_[index];
  Choice& choice = prompt.choices[static_cast<size_t>(chunk.answer)];
  prompt.summary.usage.prompt_tokens = chunk.prompt_tokens;
  BeginChoice(prompt, choice);
  AnswerPiece& piece = choice.piece;
  size_t bytes = 0;
  if (!request_.only_prompt) {
    piece.text += chunk.text;
    choice.tokens += static_cast<int>(chunk.tokens.size());
    bytes = chunk.text.size();
    if (frame_.logprobs) {
      for (SampledToken& token : chunk.tokens) {
        bytes += sizeof(SampledToken) + token.top_logprobs.size() * sizeof(TokenLogprob);
        piece.tokens.push_back(std::move(token));
      }
    }
  }
  if (request_.stream) return SendPiece(prompt, choice);
  if (const absl::Status held = call().HoldBytes(bytes); !held.ok()) return Fail(held);
  kept_bytes_ += bytes;
}

void CompletionCall::SendPiece(Prompt& prompt, Choice& choice) {
  AnswerPiece& piece = choice.piece;
  const Usage usage{prompt.summary.usage.prompt_tokens, choice.tokens, 0};
  SendChunk(prompt, TextChunkOf(frame_, piece), usage);
  if (frame_.logprobs && !chat_) piece.text_offset += CharactersOf(frame_, piece.tokens);
  piece.text.clear();
  piece.tokens.clear();
  piece.begins_prompt = false;
}

void CompletionCall::SendChunk(Prompt& prompt, std::string json, const Usage& usage) {
  if (request_.continuous_usage) json = WithMember(std::move(json), "usage", UsageJson(usage));
  if (!prompt.report.empty()) json = WithMember(std::move(json), "c3po", std::exchange(prompt.report, ""));
  Send(json);
}

AnswerFinish CompletionCall::FinishOf(const AnswerEnd& end) const {
  if (request_.only_prompt) return {FinishReason::kLength, nullptr};
  return {end.finish_reason, end.stop ? &request_.sampling.stop[static_cast<size_t>(*end.stop)] : nullptr};
}

void CompletionCall::SendEnds(Prompt& prompt) {
  for (size_t a = 0; a < prompt.summary.answers.size(); ++a) {
    Choice& choice = prompt.choices[a];
    const bool begun = choice.begun;
    BeginChoice(prompt, choice);  // One that had no token is one all the same.
    if (!begun && !choice.piece.text.empty()) SendPiece(prompt, choice);
    const Usage usage{prompt.summary.usage.prompt_tokens, choice.tokens, 0};
    SendChunk(prompt, FinishChunk(frame_, choice.piece.index, FinishOf(prompt.summary.answers[a])), usage);
  }
}

Usage CompletionCall::UsageOfAll() const {
  Usage all;
  for (const Prompt& prompt : prompts_) {
    all.prompt_tokens += prompt.summary.usage.prompt_tokens;
    all.completion_tokens += prompt.summary.usage.completion_tokens;
    all.cached_tokens += prompt.summary.usage.cached_tokens;
  }
  return all;
}

void CompletionCall::AnswerWhole() {
  std::vector<WholeChoice> choices;
  std::vector<std::string> reports;
  bool reported = false;
  for (Prompt& prompt : prompts_) {
    for (size_t a = 0; a < prompt.summary.answers.size(); ++a) {
      BeginChoice(prompt, prompt.choices[a]);
      choices.push_back({std::move(prompt.choices[a].piece), FinishOf(prompt.summary.answers[a])});
    }
    reported = reported || !prompt.report.empty();
    reports.push_back(prompt.report.empty() ? "null" : std::move(prompt.report));
  }
  std::string json = WholeAnswer(frame_, choices, UsageOfAll());
  const bool several = reports.size() > 1;
  if (reported) {
    const std::string value = several ? absl::StrCat("[", absl::StrJoin(reports, ","), "]") : reports.front();
    json = WithMember(std::move(json), "c3po", value);
  }
  call().ReleaseBytes(std::exchange(kept_bytes_, 0));
  Answer(std::move(json));
}

void CompletionCall::OnDone(size_t index, const absl::Status& status, const CallSummary& summary) {
  bool ended = false;
  absl::Status end;
  {
    const MutexLock lock(mutex_);
    Prompt& prompt = prompts_[index];
    prompt.summary = summary;
    if (request_.only_prompt) prompt.summary.usage.completion_tokens = 0;
    if (!status.ok()) Fail(status);
    const auto send = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { SendEnds(prompt); };
    if (failure_.ok() && request_.stream) {
      if (const absl::Status sent = CatchEscapedIn(ThreadKind::kEngine, send); !sent.ok()) Fail(sent);
    }
    --running_;
    ended = running_ == 0 && (next_ == prompts_.size() || !failure_.ok());
    if (ended) {
      int64_t cost = 0;
      for (const Prompt& one : prompts_) cost += one.summary.cost;
      call().NoteUsage(UsageOfAll(), cost);
      const auto finish = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        if (!request_.stream) return AnswerWhole();
        if (request_.include_usage) Send(UsageChunk(frame_, UsageOfAll()));
      };
      if (failure_.ok()) {
        if (const absl::Status sent = CatchEscapedIn(ThreadKind::kEngine, finish); !sent.ok()) Fail(sent);
      }
      end = failure_;
    }
  }
  if (ended) return End(end);
  SubmitMore();
}

}  // namespace c3po
