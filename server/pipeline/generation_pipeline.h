#ifndef C3PO_SERVER_PIPELINE_GENERATION_PIPELINE_H_
#define C3PO_SERVER_PIPELINE_GENERATION_PIPELINE_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "index/search/reference_catalog.h"
#include "server/admission/admission_controller.h"
#include "server/admission/request_limits.h"
#include "server/metrics/metrics.h"
#include "server/pipeline/generation_types.h"
#include "server/pipeline/label_offsets.h"
#include "server/pipeline/learned_shifts.h"
#include "server/pipeline/pathway_search.h"
#include "server/pipeline/prompt_text.h"
#include "server/pipeline/query_embedding.h"
#include "server/pipeline/worker_pool.h"
#include "server/scheduler/engine.h"

namespace c3po {

class CountedCall;
class FormCompiler;
class ReferenceStateBuilder;
class ScoreTokens;

// What the pipeline and the importer work with; nothing is owned, all outlives them.
struct PipelineParts {
  ModelRunner* model = nullptr;
  Engine* engine = nullptr;
  ReferenceCatalog* catalog = nullptr;
  const PromptText* text = nullptr;
  const QueryEmbedding* embedding = nullptr;
  WorkerPool* workers = nullptr;
  LearnedShifts* shifts = nullptr;
  ReferenceStateBuilder* states = nullptr;  // null: requests whose neighbor_source needs them are refused
  LabelOffsets* offsets = nullptr;          // null: there are none
  Metrics* metrics = nullptr;
  AdmissionController* admission = nullptr;
  FormCompiler* forms = nullptr;  // null: requests with a form are refused
  RequestLimits limits;
  int64_t work_memory_bytes = int64_t{512} << 20;  // --work-memory-mb
  bool allow_oracle = false;                       // requests may bring their own answer, for evaluation
};

// The way of a request, in order:
//   validate ▶ [worker] (make references' states) ▶ tokenize, embed, retrieve ▶ [engine] prefill, optimize, decode or
//   score ▶ listener
// Thread-safe.
class GenerationPipeline {
 public:
  explicit GenerationPipeline(const PipelineParts& parts) : parts_(parts) {}

  // Start returns at once. An error here means that the listener will never be called; otherwise it hears OnDone.
  // InvalidArgument "FIELD: ..."; ResourceExhausted and DeadlineExceeded: see AdmissionController; Unavailable:
  // shutting down.
  absl::Status Generate(GenerateCall call, std::shared_ptr<GenerationListener> listener);
  absl::Status Score(ScoreCall call, std::shared_ptr<GenerationListener> listener);

  // e(text), unit length, through `done`, once, from a worker or the engine thread; errors as above.
  using EmbeddingCallback = std::function<void(absl::StatusOr<std::vector<float>>)>;
  absl::Status Embed(CallContext context, std::string text, EmbeddingCallback done);

 private:
  // Puts what the collection's prior says into the query's settings, where they begin at it.
  void WishExperts(const ExpertsWish& wish, SequenceRequest& request) const;
  absl::Status ResolveQuery(PathwayQuery& query) const;
  // The label offset of the call's continuations, where the query's settings ask for one; its warning goes into them.
  absl::StatusOr<std::optional<LabelOffset>> ResolveOffsetOf(const ScoreCall& call, PathwayQuery& query) const;
  // The query's settings ask for a pathway search of `prompt`: sets the request's capture and callbacks. Adds to
  // `timings`, and to `trace` unless it is null, what was spent here. Null where the method is none.
  absl::StatusOr<std::shared_ptr<PathwaySearch>> AttachPathwaySearch(
      const PromptText::Prompt& prompt, PathwayQuery query, CallTrace* trace, StageTimings& timings,
      const std::shared_ptr<GenerationListener>& listener, SequenceRequest& request) const;
  using PermitPtr = std::shared_ptr<AdmissionController::Permit>;
  absl::StatusOr<PermitPtr> Enter(const CallContext& context) const;
  absl::Status RunGenerate(const GenerateCall& call, const PermitPtr& permit,
                           const std::shared_ptr<GenerationListener>& listener) const;
  // Where `input` is a conversation that another process renders, it becomes what that gives, and `then` is a job of a
  // worker; no thread of this one waits. Else `then` is called.
  absl::Status RenderFirst(const CallContext& context, const std::shared_ptr<PromptInput>& input,
                           const std::shared_ptr<CountedCall>& counted, std::function<absl::Status()> then) const;
  // Compiles the call's form, where it has one, elsewhere, and `then` is a job of a worker. Else `then` is called.
  absl::Status CompileFirst(const std::shared_ptr<GenerateCall>& call, const std::shared_ptr<CountedCall>& counted,
                            std::function<absl::Status()> then) const;
  // Tokenizes a slice of a Score call at a time, each as a job of its own, and then runs it.
  absl::Status Tokenize(const std::shared_ptr<ScoreTokens>& tokens, const PermitPtr& permit,
                        const std::shared_ptr<CountedCall>& counted) const;
  absl::Status RunScore(ScoreTokens& tokens, const PermitPtr& permit,
                        const std::shared_ptr<GenerationListener>& listener) const;
  absl::Status EmbedWithModel(const CallContext& context, const std::string& text, const EmbeddingCallback& done) const;
  // Queues `job`; what it returns other than OK goes to `failed`, or ends the call.
  absl::Status OnWorker(std::function<absl::Status()> job, std::function<void(const absl::Status&)> failed) const;
  absl::Status OnWorker(const std::shared_ptr<CountedCall>& counted, std::function<absl::Status()> job) const;
  // Goes on with `next` once the references have the states that the settings' neighbor_source compares: at once, or as
  // a job of a worker later.
  absl::Status OnceStatesAreThere(const OptimizationSettings& settings, const CallContext& context,
                                  const std::shared_ptr<CountedCall>& counted,
                                  std::function<absl::Status()> next) const;
  Provenance MakeProvenance(uint64_t seed) const;

  const PipelineParts parts_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_GENERATION_PIPELINE_H_
