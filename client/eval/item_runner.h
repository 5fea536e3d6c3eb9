#ifndef C3PO_CLIENT_EVAL_ITEM_RUNNER_H_
#define C3PO_CLIENT_EVAL_ITEM_RUNNER_H_

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "client/c3po_client.h"
#include "client/eval/answer_extractor.h"
#include "client/eval/effective_settings.h"
#include "client/eval/item_result.h"
#include "client/eval/method.h"
#include "client/eval/neighbor_baselines.h"
#include "client/eval/task.h"

namespace c3po {

// The neighbors of one question, searched once for all methods that read the same ones.
struct NeighborList {
  bool fetched = false;
  std::string collection;
  bool successful_only = false;
  std::string filter;  // as bytes of the message
  size_t wanted = 0;
  double seconds = 0;  // of the search
  std::vector<LabelledNeighbor> neighbors;
};

// What the methods of one question share.
struct SharedByMethods {
  NeighborList neighbors;
  std::optional<ItemResult> plain;                // of the model as it is
  std::map<std::string, ItemResult> with_offset;  // by label of the method that has the offset; ShareCalls
};

// Answers one question by one method.
class ItemRunner {
 public:
  virtual ~ItemRunner() = default;
  // Thread-safe. `shared` belongs to the question and to one thread at a time; it starts empty.
  virtual absl::StatusOr<ItemResult> Run(const Task& task, const TaskItem& item, const EvalMethod& method,
                                         SharedByMethods* shared) = 0;
};

// Asks a server.
class ClientItemRunner : public ItemRunner {
 public:
  // `client` is not owned and outlives this object. Of `server` the context window (0: not known) and the default
  // optimization are read.
  ClientItemRunner(Client* client, CallOptions call_options, const v1::GetServerInfoResponse& server);

  // Where choices of a method that asks for a label offset (use_offset) are scored without one, and why: by collection
  // and method's label. Each such answer has that as a warning. Before the first question.
  using WithoutOffset = std::map<std::pair<std::string, std::string>, std::string>;
  void ScoreWithoutOffset(WithoutOffset collections) { without_offset_ = std::move(collections); }

  // Lets two methods that optimize alike, one of them with a label offset (ngd, ngd+offset), be asked once per question
  // with choices: an answer under the offset has the scores without it, too. `methods`: of a run. Before the first
  // question.
  void ShareCalls(absl::Span<const EvalMethod> methods);

  // Two methods that are the model as it is, METHOD_NONE and the profile of a collection that has that one, are asked
  // once for both. Errors are the server's. InvalidArgument for an oracle on a generation task: Generate takes no
  // answer.
  absl::StatusOr<ItemResult> Run(const Task& task, const TaskItem& item, const EvalMethod& method,
                                 SharedByMethods* shared) override;

 private:
  absl::StatusOr<ItemResult> Ask(const Task& task, const TaskItem& item, const EvalMethod& method,
                                 NeighborList* neighbors);
  // Of one of two methods that share a call.
  absl::StatusOr<ItemResult> AskShared(const Task& task, const TaskItem& item, const EvalMethod& method,
                                       const EvalMethod& with_offset, SharedByMethods* shared);
  // Whether requests of the method are answered by the model as it is.
  bool IsPlain(const Task& task, const TaskItem& item, const EvalMethod& method);
  absl::Status RunChoices(const Task& task, const TaskItem& item, const EvalMethod& method, const std::string& prompt,
                          ItemResult* result);
  absl::Status RunGeneration(const Task& task, const TaskItem& item, const EvalMethod& method,
                             const std::string& prompt, ItemResult* result);
  absl::Status RunVote(const Task& task, const TaskItem& item, const EvalMethod& method, NeighborList* neighbors,
                       ItemResult* result);
  // Of a baseline: its options over what requests over the collection get.
  absl::StatusOr<v1::OptimizationOptions> NeighborSettings(const Task& task, const EvalMethod& method);
  absl::Status FetchNeighbors(const TaskItem& item, const v1::OptimizationOptions& settings, uint32_t shots,
                              NeighborList* neighbors, std::vector<LabelledNeighbor>* nearest, ItemResult* result);
  // The in-context prompt with as many of the neighbors as the context window takes; drops the farthest first.
  absl::StatusOr<std::string> FittingPrompt(const Task& task, const TaskItem& item,
                                            std::vector<LabelledNeighbor>* neighbors);
  absl::StatusOr<uint32_t> CountTokens(const std::string& text);
  absl::StatusOr<const AnswerExtractor*> ExtractorOf(const Task& task);

  Client& client_;
  const CallOptions call_options_;
  const uint32_t context_window_;
  EffectiveSettings effective_;
  WithoutOffset without_offset_;
  std::map<std::string, EvalMethod> shares_call_with_;  // by label: the method that has the offset, maybe itself
  absl::Mutex mu_;
  std::map<std::string, std::unique_ptr<AnswerExtractor>> extractors_ ABSL_GUARDED_BY(mu_);  // by pattern
};

// The collection that a method asks of a task, in requests and in searches for its neighbors.
std::string CollectionOf(const Task& task, const EvalMethod& method);

// What requests of a method carry for one question: the method's options, the collection, and the references that must
// not be neighbors.
v1::OptimizationOptions RequestOptions(const Task& task, const TaskItem& item, const EvalMethod& method);

// "applied", "skipped_neighbors_far": GateDecision without its prefix; empty for METHOD_NONE.
std::string GateName(v1::GateDecision gate);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_ITEM_RUNNER_H_
