#include "client/eval/item_result.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <type_traits>

#include "absl/strings/str_cat.h"

namespace c3po {
namespace {

using Json = nlohmann::ordered_json;

// Both directions walk the same list of members, so that they cannot drift apart.
template <typename Item, typename Visitor>
void VisitMembers(Item& item, Visitor&& visit) {
  visit("task", item.task);
  visit("id", item.id);
  visit("method", item.method);
  visit("log_likelihoods", item.log_likelihoods);
  visit("token_counts", item.token_counts);
  visit("offset_scores", item.offset_scores);
  visit("byte_counts", item.byte_counts);
  visit("gold", item.gold);
  visit("predicted", item.predicted);
  visit("correct_raw", item.correct_raw);
  visit("correct_per_byte", item.correct_per_byte);
  visit("correct_per_token", item.correct_per_token);
  visit("text", item.text);
  visit("extracted", item.extracted);
  visit("wanted", item.wanted);
  visit("correct", item.correct);
  visit("gate", item.gate);
  visit("neighbor_ids", item.neighbor_ids);
  visit("neighbor_distances", item.neighbor_distances);
  visit("losses", item.losses);
  visit("warnings", item.warnings);
  visit("seconds", item.seconds);
  visit("optimization_seconds", item.optimization_seconds);
  visit("retrieval_seconds", item.retrieval_seconds);
  visit("prefill_seconds", item.prefill_seconds);
  visit("queue_seconds", item.queue_seconds);
  visit("prompt_tokens", item.prompt_tokens);
  visit("completion_tokens", item.completion_tokens);
}

template <typename T>
bool IsEmpty(const T&) {
  return false;
}
template <typename T>
bool IsEmpty(const std::vector<T>& value) {
  return value.empty();
}
bool IsEmpty(const std::string& value) { return value.empty(); }

}  // namespace

absl::Status CheckFinite(const ItemResult& item) {
  absl::Status status;
  VisitMembers(item, [&](const char* name, const auto& value) {
    [[maybe_unused]] const auto check = [&](double figure) {
      if (!std::isfinite(figure) && status.ok()) {
        status = absl::InternalError(absl::StrCat("\"", name, "\" holds ", figure, ", which is not a number"));
      }
    };
    if constexpr (std::is_same_v<std::decay_t<decltype(value)>, double>) check(value);
    if constexpr (std::is_same_v<std::decay_t<decltype(value)>, std::vector<double>>) {
      for (const double figure : value) check(figure);
    }
  });
  return status;
}

std::string ToJsonLine(const ItemResult& item) {
  Json json;
  VisitMembers(item, [&](const char* name, const auto& value) {
    if (!IsEmpty(value)) json[name] = value;
  });
  // Invalid UTF-8 in a model's answer must not lose the line.
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

absl::StatusOr<ItemResult> ParseItemResult(absl::string_view line) {
  const Json json = Json::parse(line.begin(), line.end(), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return absl::InvalidArgumentError("not a JSON object");
  for (const char* required : {"task", "id", "method", "correct"}) {
    if (!json.contains(required)) return absl::InvalidArgumentError(absl::StrCat("\"", required, "\" is missing"));
  }
  ItemResult item;
  absl::Status status;
  VisitMembers(item, [&](const char* name, auto& value) {
    const auto found = json.find(name);
    if (found == json.end() || !status.ok()) return;
    if (found->is_array() && std::any_of(found->begin(), found->end(), [](const Json& e) { return e.is_null(); })) {
      status = absl::OutOfRangeError(absl::StrCat("\"", name, "\" holds null, which is not a number"));
      return;
    }
    try {
      found->get_to(value);
    } catch (const nlohmann::json::exception&) {
      status = absl::InvalidArgumentError(absl::StrCat("\"", name, "\" has another type"));
    }
  });
  if (!status.ok()) return status;
  return item;
}

}  // namespace c3po
