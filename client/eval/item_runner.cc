#include "client/eval/item_runner.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "client/eval/choice_metrics.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

void CopyReport(const v1::OptimizationReport& report, ItemResult* result) {
  result->gate = GateName(report.gate());
  if (report.neighbors_size() > 0) {
    result->neighbor_ids.clear();
    result->neighbor_distances.clear();
    result->neighbor_texts.clear();
  }
  for (const v1::NeighborInfo& neighbor : report.neighbors()) {
    result->neighbor_ids.push_back(neighbor.reference_id());
    result->neighbor_distances.push_back(neighbor.distance());
    result->neighbor_texts.push_back({neighbor.reference_id(), neighbor.prompt(), neighbor.answer()});
  }
  result->losses.assign(report.losses().begin(), report.losses().end());
  result->warnings.assign(report.warnings().begin(), report.warnings().end());
}

void CopyTimings(const v1::StageTimings& timings, ItemResult* result) {
  result->optimization_seconds = timings.optimization_seconds();
  result->retrieval_seconds += timings.retrieval_seconds();
  result->prefill_seconds = timings.prefill_seconds();
  result->queue_seconds = timings.queue_seconds();
}

void CopyUsage(const v1::Usage& usage, ItemResult* result) {
  result->prompt_tokens = static_cast<int>(usage.prompt_tokens());
  result->completion_tokens = static_cast<int>(usage.completion_tokens());
}

size_t LongestAnswer(const TaskItem& item) {
  size_t longest = 0;
  for (const std::string& choice : item.choices) longest = std::max(longest, choice.size());
  return longest;
}

constexpr size_t kNeighborsMax = 64;  // The server's, of all within epsilon.

}  // namespace

std::string CollectionOf(const Task& task, const EvalMethod& method) {
  return method.optimization.has_collection() ? method.optimization.collection()
                                              : absl::StrCat(task.collection, method.collection_suffix);
}

v1::OptimizationOptions RequestOptions(const Task& task, const TaskItem& item, const EvalMethod& method) {
  v1::OptimizationOptions options;
  const bool plain = method.optimization.method() == v1::METHOD_NONE && !method.optimization.use_offset();
  if (method.kind != MethodKind::kScore || plain) {
    options.set_method(v1::METHOD_NONE);
    options.set_use_offset(false);  // Whatever a profile says.
    return options;
  }
  options = method.optimization;
  options.set_collection(CollectionOf(task, method));
  for (const std::string& own : item.own_references) options.add_exclude_reference_ids(own);
  return options;
}

std::string GateName(v1::GateDecision gate) {
  if (gate == v1::GATE_DECISION_UNSPECIFIED || gate == v1::GATE_DECISION_NOT_REQUESTED) return "";
  return absl::AsciiStrToLower(absl::StripPrefix(v1::GateDecision_Name(gate), "GATE_DECISION_"));
}

ClientItemRunner::ClientItemRunner(Client* client, CallOptions call_options, const v1::GetServerInfoResponse& server)
    : client_(*client),
      call_options_(call_options),
      context_window_(server.model().context_window()),
      effective_(client, call_options, server.default_optimization()) {}

absl::StatusOr<ItemResult> ClientItemRunner::Run(const Task& task, const TaskItem& item, const EvalMethod& method,
                                                 SharedByMethods* shared) {
  if (!IsPlain(task, item, method)) {
    const auto sharing = shares_call_with_.find(method.label);
    if (sharing == shares_call_with_.end() || task.kind != TaskKind::kChoice) {
      return Ask(task, item, method, &shared->neighbors);
    }
    return AskShared(task, item, method, sharing->second, shared);
  }
  if (!shared->plain) {
    C3PO_ASSIGN_OR_RETURN(shared->plain, Ask(task, item, method, &shared->neighbors));
  }
  ItemResult result = *shared->plain;
  result.method = method.label;
  return result;
}

void ClientItemRunner::ShareCalls(absl::Span<const EvalMethod> methods) {
  const auto but_for_offset = [](const EvalMethod& method) {
    v1::OptimizationOptions options = method.optimization;
    options.clear_use_offset();
    return std::make_pair(options.SerializeAsString(), method.collection_suffix);
  };
  for (const EvalMethod& with : methods) {
    const bool optimizes = with.kind == MethodKind::kScore && with.optimization.method() != v1::METHOD_NONE;
    if (!optimizes || !with.optimization.use_offset()) continue;
    for (const EvalMethod& method : methods) {
      if (method.kind == MethodKind::kScore && but_for_offset(method) == but_for_offset(with)) {
        shares_call_with_[method.label] = with;
      }
    }
  }
}

absl::StatusOr<ItemResult> ClientItemRunner::AskShared(const Task& task, const TaskItem& item, const EvalMethod& method,
                                                       const EvalMethod& with_offset, SharedByMethods* shared) {
  // What is left open may be the profile's.
  C3PO_ASSIGN_OR_RETURN(const v1::OptimizationOptions settings,
                        effective_.Resolve(method.optimization, CollectionOf(task, method)));
  auto answered = shared->with_offset.find(with_offset.label);
  if (answered == shared->with_offset.end()) {
    C3PO_ASSIGN_OR_RETURN(ItemResult asked, Ask(task, item, with_offset, &shared->neighbors));
    answered = shared->with_offset.emplace(with_offset.label, std::move(asked)).first;
  }
  ItemResult result = answered->second;
  result.method = method.label;
  if (settings.use_offset()) return result;
  result.offset_scores.clear();
  JudgeChoices(task, item, &result);
  const auto is_of_offset = [](const std::string& warning) { return absl::StrContains(warning, "label offset"); };
  result.warnings.erase(std::remove_if(result.warnings.begin(), result.warnings.end(), is_of_offset),
                        result.warnings.end());
  return result;
}

bool ClientItemRunner::IsPlain(const Task& task, const TaskItem& item, const EvalMethod& method) {
  if (method.kind != MethodKind::kScore) return false;
  const v1::OptimizationOptions options = RequestOptions(task, item, method);
  if (options.use_offset()) return false;
  if (options.method() != v1::METHOD_UNSPECIFIED) return options.method() == v1::METHOD_NONE;
  // Then the profile does not count, and what stands in its place optimizes.
  if (options.has_use_profile() && !options.use_profile()) return false;
  if (options.preset() != v1::PRESET_UNSPECIFIED) return false;
  // What is wrong with the collection, the question itself tells.
  const auto effective = effective_.Of(options.collection());
  return effective.ok() && effective->method() == v1::METHOD_NONE && !effective->use_offset();
}

absl::StatusOr<v1::OptimizationOptions> ClientItemRunner::NeighborSettings(const Task& task, const EvalMethod& method) {
  const std::string collection = CollectionOf(task, method);
  C3PO_ASSIGN_OR_RETURN(v1::OptimizationOptions settings, effective_.Resolve(method.optimization, collection));
  settings.set_collection(collection);
  return settings;
}

absl::StatusOr<ItemResult> ClientItemRunner::Ask(const Task& task, const TaskItem& item, const EvalMethod& method,
                                                 NeighborList* neighbors) {
  ItemResult result;
  result.task = task.name;
  result.id = item.id;
  result.method = method.label;
  std::string prompt = item.prompt;
  const absl::Time start = absl::Now();
  double before = 0;  // What the shared search took, if another method made it.
  if (method.kind == MethodKind::kInContext) {
    std::vector<LabelledNeighbor> nearest;
    const bool shared = neighbors->fetched;
    C3PO_ASSIGN_OR_RETURN(const v1::OptimizationOptions settings, NeighborSettings(task, method));
    C3PO_RETURN_IF_ERROR(FetchNeighbors(item, settings, method.shots, neighbors, &nearest, &result));
    if (shared) before = neighbors->seconds;
    C3PO_ASSIGN_OR_RETURN(prompt, FittingPrompt(task, item, &nearest));
    result.neighbor_ids.resize(nearest.size());
    result.neighbor_distances.resize(nearest.size());
  }
  if (method.kind == MethodKind::kNeighborVote) {
    const bool shared = neighbors->fetched;
    C3PO_RETURN_IF_ERROR(RunVote(task, item, method, neighbors, &result));
    if (shared) before = neighbors->seconds;
  } else if (task.kind == TaskKind::kChoice) {
    C3PO_RETURN_IF_ERROR(RunChoices(task, item, method, prompt, &result));
  } else {
    C3PO_RETURN_IF_ERROR(RunGeneration(task, item, method, prompt, &result));
  }
  result.seconds = before + absl::ToDoubleSeconds(absl::Now() - start);
  return result;
}

absl::Status ClientItemRunner::RunChoices(const Task& task, const TaskItem& item, const EvalMethod& method,
                                          const std::string& prompt, ItemResult* result) {
  v1::ScoreRequest request;
  request.set_prompt(prompt);
  for (const std::string& choice : item.choices) request.add_continuations(choice);
  *request.mutable_optimization() = RequestOptions(task, item, method);
  const auto no_offset = without_offset_.find({CollectionOf(task, method), method.label});
  const bool lacks_offset = request.optimization().use_offset() && no_offset != without_offset_.end();
  if (lacks_offset) request.mutable_optimization()->set_use_offset(false);
  if (request.optimization().method() == v1::METHOD_ORACLE) request.set_oracle_answer(item.answer);
  C3PO_ASSIGN_OR_RETURN(const v1::ScoreResponse response, client_.Score(request, call_options_));
  if (response.scores_size() != request.continuations_size()) {
    return absl::InternalError(
        absl::StrCat("the server scored ", response.scores_size(), " choices of ", request.continuations_size()));
  }
  for (const v1::ContinuationScore& score : response.scores()) {
    result->log_likelihoods.push_back(score.log_likelihood());
    result->token_counts.push_back(static_cast<int>(score.token_count()));
    if (score.has_offset_score()) result->offset_scores.push_back(score.offset_score());
  }
  if (result->offset_scores.size() != result->log_likelihoods.size()) result->offset_scores.clear();
  JudgeChoices(task, item, result);
  CopyReport(response.optimization(), result);
  if (lacks_offset) result->warnings.push_back(absl::StrCat("scored without a label offset: ", no_offset->second));
  CopyTimings(response.timings(), result);
  CopyUsage(response.usage(), result);
  return absl::OkStatus();
}

absl::Status ClientItemRunner::RunGeneration(const Task& task, const TaskItem& item, const EvalMethod& method,
                                             const std::string& prompt, ItemResult* result) {
  v1::GenerateRequest request;
  request.set_prompt(prompt);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_max_tokens(static_cast<uint32_t>(task.max_tokens));
  for (const std::string& stop : task.stop) request.mutable_sampling()->add_stop(stop);
  *request.mutable_optimization() = RequestOptions(task, item, method);
  if (request.optimization().method() == v1::METHOD_ORACLE) {
    return absl::InvalidArgumentError("method oracle needs choices: a generation task cannot give it the answer");
  }
  C3PO_ASSIGN_OR_RETURN(const AnswerExtractor* extractor, ExtractorOf(task));
  C3PO_RETURN_IF_ERROR(client_.Generate(
      request,
      [&](const v1::GenerateResponse& event) {
        if (event.has_optimization()) CopyReport(event.optimization(), result);
        if (event.has_delta()) result->text += event.delta().text();
        if (event.has_summary()) {
          CopyTimings(event.summary().timings(), result);
          CopyUsage(event.summary().usage(), result);
        }
        return true;
      },
      call_options_));
  result->extracted = extractor->Extract(result->text);
  result->wanted = std::string(absl::StripAsciiWhitespace(item.answer));
  result->correct = NormalizeAnswer(result->extracted) == NormalizeAnswer(result->wanted);
  return absl::OkStatus();
}

absl::Status ClientItemRunner::RunVote(const Task& task, const TaskItem& item, const EvalMethod& method,
                                       NeighborList* neighbors, ItemResult* result) {
  std::vector<LabelledNeighbor> nearest;
  C3PO_ASSIGN_OR_RETURN(const v1::OptimizationOptions settings, NeighborSettings(task, method));
  C3PO_RETURN_IF_ERROR(FetchNeighbors(item, settings, /*shots=*/0, neighbors, &nearest, result));
  VoteKernel kernel;
  if (settings.has_kernel()) kernel.kernel = settings.kernel();
  if (settings.has_bandwidth()) kernel.bandwidth = settings.bandwidth();
  if (task.kind == TaskKind::kChoice) {
    JudgePrediction(item, VotedChoice(item, nearest, kernel), result);
    return absl::OkStatus();
  }
  // A reference's answer goes the way of a generated one: GSM8K's ends with its number.
  C3PO_ASSIGN_OR_RETURN(const AnswerExtractor* extractor, ExtractorOf(task));
  for (LabelledNeighbor& neighbor : nearest) neighbor.answer = NormalizeAnswer(extractor->Extract(neighbor.answer));
  result->text = result->extracted = VotedAnswer(nearest, kernel);
  result->wanted = std::string(absl::StripAsciiWhitespace(item.answer));
  result->correct = !nearest.empty() && NormalizeAnswer(result->extracted) == NormalizeAnswer(result->wanted);
  return absl::OkStatus();
}

// As server/pipeline/neighborhood.cc finds them: the k nearest, or all within epsilon; `shots` (0: not set) takes the
// place of k.
absl::Status ClientItemRunner::FetchNeighbors(const TaskItem& item, const v1::OptimizationOptions& settings,
                                              uint32_t shots, NeighborList* neighbors,
                                              std::vector<LabelledNeighbor>* nearest, ItemResult* result) {
  const bool within = shots == 0 && settings.has_epsilon();
  const size_t count = within ? kNeighborsMax : shots > 0 ? shots : settings.k();
  const bool successful_only = settings.reference_selection() == v1::REFERENCE_SELECTION_SUCCESSFUL;
  const std::string filter = settings.filter().SerializeAsString();
  if (!neighbors->fetched || neighbors->wanted < count || neighbors->successful_only != successful_only ||
      neighbors->collection != settings.collection() || neighbors->filter != filter) {
    const absl::Time start = absl::Now();
    v1::SearchReferencesRequest request;
    request.set_collection(settings.collection());
    request.set_text(item.prompt);
    request.set_k(static_cast<uint32_t>(count + item.own_references.size()));
    request.set_successful_only(successful_only);
    if (settings.has_filter()) *request.mutable_filter() = settings.filter();
    C3PO_ASSIGN_OR_RETURN(const v1::SearchReferencesResponse response,
                          client_.SearchReferences(request, call_options_));
    neighbors->neighbors.clear();
    for (const auto& hit : response.hits()) {
      const auto& own = item.own_references;
      if (std::find(own.begin(), own.end(), hit.reference().id()) != own.end()) continue;
      if (neighbors->neighbors.size() == count) break;
      neighbors->neighbors.push_back(
          {hit.reference().id(), hit.distance(), hit.reference().sample().prompt(), hit.reference().sample().answer()});
    }
    neighbors->fetched = true;
    neighbors->collection = settings.collection();
    neighbors->wanted = count;
    neighbors->successful_only = successful_only;
    neighbors->filter = filter;
    neighbors->seconds = absl::ToDoubleSeconds(absl::Now() - start);
  }
  nearest->assign(neighbors->neighbors.begin(),
                  neighbors->neighbors.begin() + std::min(count, neighbors->neighbors.size()));
  while (within && !nearest->empty() && nearest->back().distance > settings.epsilon()) nearest->pop_back();
  for (const LabelledNeighbor& neighbor : *nearest) {
    result->neighbor_ids.push_back(neighbor.id);
    result->neighbor_distances.push_back(neighbor.distance);
    result->neighbor_texts.push_back({neighbor.id, neighbor.prompt, neighbor.answer});
  }
  result->retrieval_seconds = neighbors->seconds;
  return absl::OkStatus();
}

absl::StatusOr<std::string> ClientItemRunner::FittingPrompt(const Task& task, const TaskItem& item,
                                                            std::vector<LabelledNeighbor>* neighbors) {
  const size_t reserved =
      task.kind == TaskKind::kGeneration ? static_cast<size_t>(task.max_tokens) : LongestAnswer(item);
  while (true) {
    const std::string prompt = InContextPrompt(*neighbors, item.prompt);
    // A token is at least one byte, so a short text needs no count; one more is for the beginning of the sequence.
    if (neighbors->empty() || context_window_ == 0 || prompt.size() + reserved + 1 <= context_window_) return prompt;
    // The reserve is in bytes for choices, which is more than enough tokens.
    C3PO_ASSIGN_OR_RETURN(const uint32_t tokens, CountTokens(prompt));
    if (tokens + reserved <= context_window_) return prompt;
    neighbors->pop_back();
  }
}

absl::StatusOr<uint32_t> ClientItemRunner::CountTokens(const std::string& text) {
  v1::TokenizeRequest request;
  request.set_text(text);
  C3PO_ASSIGN_OR_RETURN(const v1::TokenizeResponse response, client_.Tokenize(request, call_options_));
  return static_cast<uint32_t>(response.ids_size());
}

absl::StatusOr<const AnswerExtractor*> ClientItemRunner::ExtractorOf(const Task& task) {
  absl::MutexLock lock(&mu_);
  std::unique_ptr<AnswerExtractor>& extractor = extractors_[task.extraction];
  if (extractor == nullptr) {
    C3PO_ASSIGN_OR_RETURN(extractor, AnswerExtractor::Create(task.extraction));
  }
  return extractor.get();
}

}  // namespace c3po
