#include "client/eval/label_task.h"

#include <algorithm>

#include "absl/strings/ascii.h"

namespace c3po {

int LabelOfAnswer(absl::Span<const std::string> labels, absl::string_view answer) {
  const auto found = std::find(labels.begin(), labels.end(), absl::StripAsciiWhitespace(answer));
  return found == labels.end() ? -1 : static_cast<int>(found - labels.begin());
}

std::optional<std::vector<int>> LabelsOfChoices(absl::Span<const std::string> labels,
                                                absl::Span<const std::string> choices) {
  if (choices.size() != labels.size()) return std::nullopt;
  std::vector<int> of_choices;
  std::vector<bool> seen(labels.size(), false);
  for (const std::string& choice : choices) {
    const int label = LabelOfAnswer(labels, choice);
    if (label < 0 || seen[label]) return std::nullopt;
    seen[label] = true;
    of_choices.push_back(label);
  }
  return of_choices;
}

std::vector<std::string> SharedLabels(absl::Span<const std::vector<std::string>> choices) {
  if (choices.size() < 2 || choices.front().size() < 2) return {};
  std::vector<std::string> labels;
  for (const std::string& choice : choices.front()) labels.emplace_back(absl::StripAsciiWhitespace(choice));
  for (const std::vector<std::string>& each : choices) {
    if (!LabelsOfChoices(labels, each)) return {};
  }
  return labels;
}

}  // namespace c3po
