#ifndef C3PO_CLIENT_EVAL_OFF_TOPIC_CHECK_H_
#define C3PO_CLIENT_EVAL_OFF_TOPIC_CHECK_H_

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "c3po/v1/options.pb.h"
#include "client/c3po_client.h"

namespace c3po {

// A collection's settings have to leave alone what is not of its kind: prompts of every day and those of other
// collections keep the model's own greedy answer.

// Prompts that no collection of labeled samples is about: questions, chat, beginnings of texts. Written for this check.
std::vector<std::string> EverydayPrompts();

// Some prompts of each of up to `collections_max` other collections, `each` of them. Prompts that are among the
// collection's own references, too (client/eval/known_questions.h), are not off topic and are passed over: a copy of
// the collection, or an older one of it, gives none. Errors are the server's.
absl::StatusOr<std::vector<std::string>> PromptsOfOthers(Client& client, const std::string& collection,
                                                         size_t collections_max, size_t each,
                                                         const CallOptions& options);

// What came of one prompt.
struct OffTopicAnswer {
  std::string prompt;
  bool changed = false;  // the greedy answer, of at most kOffTopicTokens tokens, is another than the model's own
  std::optional<double> nearest_distance;
};
inline constexpr uint32_t kOffTopicTokens = 16;

// Asks every prompt under `settings`, and where they were applied the model alone, and compares. `on_answer` is told
// after each prompt. Errors are the server's.
absl::StatusOr<std::vector<OffTopicAnswer>> AskOffTopic(Client& client, const v1::OptimizationOptions& settings,
                                                        absl::Span<const std::string> prompts,
                                                        const std::function<void()>& on_answer,
                                                        const CallOptions& options);

// The largest gate.max_neighbor_distance under which at most the share `changed_max` of the answers stays changed: just
// below a changed prompt's distance. Nothing where no more than that are changed as it is, or where a changed prompt
// has no distance.
std::optional<double> DistanceThatSpares(absl::Span<const OffTopicAnswer> answers, double changed_max);

// How far some of the collection's references, at most `count_max`, are from the nearest other one; what a limit of the
// distance would do to requests of the collection's kind. Errors are the server's.
absl::StatusOr<std::vector<double>> DistancesWithin(Client& client, const std::string& collection, size_t count_max,
                                                    const CallOptions& options);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_OFF_TOPIC_CHECK_H_
