#include "client/eval/task.h"

#include <numeric>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"

namespace c3po {

const char* MetricName(Metric metric) {
  switch (metric) {
    case Metric::kRaw:
      return "raw";
    case Metric::kPerByte:
      return "per_byte";
    case Metric::kPerToken:
      return "per_token";
    case Metric::kExactMatch:
      return "exact_match";
  }
  return "";
}

absl::StatusOr<Metric> ParseMetric(absl::string_view name) {
  if (name == "raw" || name == "acc") return Metric::kRaw;
  if (name == "per_byte" || name == "length_normalized" || name == "per_character" || name == "acc_norm") {
    return Metric::kPerByte;
  }
  if (name == "per_token") return Metric::kPerToken;
  if (name == "exact_match") return Metric::kExactMatch;
  return absl::InvalidArgumentError(
      absl::StrCat("metric \"", name, "\" is none of raw, per_byte, per_token, exact_match"));
}

const char* TaskKindName(TaskKind kind) { return kind == TaskKind::kChoice ? "choice" : "generation"; }

std::vector<size_t> ShuffledOrder(size_t count, uint64_t seed) {
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), size_t{0});
  std::mt19937_64 random(seed);
  // std::shuffle may differ between libraries. The bias of the remainder is below count / 2^64.
  for (size_t i = count; i > 1; --i) std::swap(order[i - 1], order[random() % i]);
  return order;
}

void SampleItems(size_t limit, std::optional<uint64_t> seed, std::vector<TaskItem>* items) {
  if (seed) {
    std::vector<TaskItem> shuffled;
    for (const size_t index : ShuffledOrder(items->size(), *seed)) shuffled.push_back(std::move((*items)[index]));
    *items = std::move(shuffled);
  }
  if (limit > 0 && items->size() > limit) items->resize(limit);
}

}  // namespace c3po
