#include "client/eval/off_topic_check.h"

#include <algorithm>

#include "client/eval/known_questions.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

// Of another collection so many references are looked at for each prompt that is wanted; the rest may be copies too.
constexpr size_t kSeenPerPrompt = 4;

struct Answer {
  std::string text;
  bool applied = false;
  std::optional<double> nearest_distance;
};

absl::StatusOr<Answer> Ask(Client& client, const std::string& prompt, const v1::OptimizationOptions& settings,
                           const CallOptions& options) {
  v1::GenerateRequest request;
  request.set_prompt(prompt);
  *request.mutable_optimization() = settings;
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_max_tokens(kOffTopicTokens);
  Answer answer;
  const absl::Status status = client.Generate(
      request,
      [&](const v1::GenerateResponse& event) {
        if (event.has_delta()) answer.text += event.delta().text();
        if (event.has_optimization()) {
          answer.applied = event.optimization().gate() == v1::GATE_DECISION_APPLIED;
          if (event.optimization().has_nearest_distance())
            answer.nearest_distance = event.optimization().nearest_distance();
        }
        return true;
      },
      options);
  C3PO_RETURN_IF_ERROR(status);
  return answer;
}

}  // namespace

std::vector<std::string> EverydayPrompts() {
  return {
      "The capital of France is",
      "What is 7 times 6?",
      "Hello! How are you today?",
      "How do I make a cup of tea?",
      "Write a sentence about the rain.",
      "Who invented the telephone?",
      "What is the fastest land animal?",
      "Tell me a short bedtime story.",
      "How many hours are in a week?",
      "What is a synonym for \"happy\"?",
      "Explain gravity in one sentence.",
      "My laptop does not turn on. What should I check first?",
      "Translate \"thank you\" into German.",
      "What can I do on a rainy Sunday?",
      "List three vegetables that grow underground.",
      "Why do leaves change color in autumn?",
      "What is the difference between weather and climate?",
      "Write a polite reply that declines an invitation to dinner.",
      "Which ocean is the largest?",
      "How do I keep bread fresh for longer?",
      "What is the past tense of \"to swim\"?",
      "Give me one reason to learn a second language.",
      "Once upon a time, in a small village,",
      "The best way to learn how to cook is",
  };
}

absl::StatusOr<std::vector<std::string>> PromptsOfOthers(Client& client, const std::string& collection,
                                                         size_t collections_max, size_t each,
                                                         const CallOptions& options) {
  C3PO_ASSIGN_OR_RETURN(const v1::GetStatsResponse stats, client.GetStats(options));
  std::vector<std::string> prompts;
  size_t collections = 0;
  for (const v1::CollectionStats& other : stats.collections()) {
    if (other.collection() == collection || other.references() == 0) continue;
    if (collections == collections_max) break;
    v1::ListReferencesRequest request;
    request.set_collection(other.collection());
    request.set_page_size(static_cast<uint32_t>(each));
    size_t seen = 0, taken = 0;
    absl::Status searched;
    C3PO_RETURN_IF_ERROR(client.ForEachReference(
        request,
        [&](const v1::Reference& reference) {
          const auto own = IsAmongReferences(client, collection, reference.sample().prompt(), options);
          searched = own.status();
          if (!own.ok()) return false;
          if (!*own) {
            prompts.push_back(reference.sample().prompt());
            ++taken;
          }
          return ++seen < kSeenPerPrompt * each && taken < each;
        },
        options));
    C3PO_RETURN_IF_ERROR(searched);
    collections += taken > 0 ? 1 : 0;
  }
  return prompts;
}

absl::StatusOr<std::vector<double>> DistancesWithin(Client& client, const std::string& collection, size_t count_max,
                                                    const CallOptions& options) {
  std::vector<double> distances;
  v1::ListReferencesRequest request;
  request.set_collection(collection);
  request.set_page_size(static_cast<uint32_t>(count_max));
  size_t seen = 0;
  absl::Status searched;
  C3PO_RETURN_IF_ERROR(client.ForEachReference(
      request,
      [&](const v1::Reference& reference) {
        v1::SearchReferencesRequest search;
        search.set_collection(collection);
        search.set_text(reference.sample().prompt());
        search.set_k(2);  // the reference itself, and another
        const auto response = client.SearchReferences(search, options);
        searched = response.status();
        if (!searched.ok()) return false;
        for (const auto& hit : response->hits()) {
          if (hit.reference().id() == reference.id()) continue;
          distances.push_back(hit.distance());
          break;
        }
        return ++seen < count_max;
      },
      options));
  C3PO_RETURN_IF_ERROR(searched);
  return distances;
}

absl::StatusOr<std::vector<OffTopicAnswer>> AskOffTopic(Client& client, const v1::OptimizationOptions& settings,
                                                        absl::Span<const std::string> prompts,
                                                        const std::function<void()>& on_answer,
                                                        const CallOptions& options) {
  v1::OptimizationOptions none;
  none.set_method(v1::METHOD_NONE);
  std::vector<OffTopicAnswer> answers;
  for (const std::string& prompt : prompts) {
    C3PO_ASSIGN_OR_RETURN(const Answer under, Ask(client, prompt, settings, options));
    OffTopicAnswer answer{prompt, false, under.nearest_distance};
    if (under.applied) {
      C3PO_ASSIGN_OR_RETURN(const Answer own, Ask(client, prompt, none, options));
      answer.changed = own.text != under.text;
    }
    answers.push_back(std::move(answer));
    if (on_answer) on_answer();
  }
  return answers;
}

std::optional<double> DistanceThatSpares(absl::Span<const OffTopicAnswer> answers, double changed_max) {
  std::vector<double> changed;
  for (const OffTopicAnswer& answer : answers) {
    if (!answer.changed) continue;
    if (!answer.nearest_distance) return std::nullopt;
    changed.push_back(*answer.nearest_distance);
  }
  const auto allowed = static_cast<size_t>(changed_max * static_cast<double>(answers.size()));
  if (changed.size() <= allowed) return std::nullopt;
  std::sort(changed.begin(), changed.end());
  return std::max(0.0, changed[allowed] * (1 - 1e-3));
}

}  // namespace c3po
