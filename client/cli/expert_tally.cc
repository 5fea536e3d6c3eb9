#include "client/cli/expert_tally.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace c3po {

void ExpertTally::Add(const v1::RoutedExperts& routes) {
  const uint64_t tokens = routes.tokens(), layers = routes.layers(), experts = routes.experts();
  if (static_cast<uint64_t>(routes.ids_size()) != tokens * layers * experts) return;
  tokens_ += tokens;
  if (layers_.size() < layers) layers_.resize(layers);
  int at = 0;
  for (uint64_t token = 0; token < tokens; ++token) {
    for (uint64_t layer = 0; layer < layers; ++layer) {
      for (uint64_t j = 0; j < experts; ++j) ++layers_[layer][routes.ids(at++)];
    }
  }
}

std::string ExpertTally::Table(const Terminal& terminal) const {
  if (tokens_ == 0) return "";
  constexpr size_t kShown = 8;
  c3po::Table table("rl");
  table.AddRow({"layer", absl::StrCat("experts, by the share of ", tokens_, " tokens that were given them")});
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    std::vector<std::pair<uint32_t, uint64_t>> order(layers_[layer].begin(), layers_[layer].end());
    std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
    if (order.size() > kShown) order.resize(kShown);
    const auto format = [this](std::string* out, const auto& entry) {
      absl::StrAppendFormat(out, "%d %.0f%%", entry.first,
                            100.0 * static_cast<double>(entry.second) / static_cast<double>(tokens_));
    };
    table.AddRow({absl::StrCat(layer), absl::StrJoin(order, "  ", format)});
  }
  return table.Render(terminal);
}

}  // namespace c3po
