#include "index/search/own_distances.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "index/search/distance.h"

namespace c3po {

OwnDistances OwnDistances::Refreshed(const OwnDistances& before, absl::Span<const Member> sample,
                                     absl::Span<const Member> arrivals,
                                     absl::FunctionRef<bool(const Member&)> is_member,
                                     absl::FunctionRef<std::vector<Nearest>(absl::Span<const Member>)> search) {
  OwnDistances after;
  std::vector<Member> searched;
  std::vector<size_t> places;  // Of these, in `after`.
  after.entries_.reserve(sample.size());
  for (const Member& member : sample) {
    const auto old = std::lower_bound(before.entries_.begin(), before.entries_.end(), member.label,
                                      [](const Entry& entry, int64_t label) { return entry.member.label < label; });
    const bool known = old != before.entries_.end() && old->member.record == member.record;
    if (!known || (old->nearest.member.record != nullptr && !is_member(old->nearest.member))) {
      searched.push_back(member);
      places.push_back(after.entries_.size());
      after.entries_.push_back({member, {}});
      continue;
    }
    Entry entry = *old;
    const std::vector<float>& embedding = member.record->embedding;
    for (const Member& arrival : arrivals) {
      const float distance =
          std::sqrt(SquaredDistance(embedding.data(), arrival.record->embedding.data(), embedding.size()));
      if (!(distance > kSameEmbedding)) continue;
      if (entry.nearest.member.record == nullptr || distance < entry.nearest.distance) {
        entry.nearest = {arrival, distance};
      }
    }
    after.entries_.push_back(std::move(entry));
  }
  if (searched.empty()) return after;
  std::vector<Nearest> nearest = search(searched);
  for (size_t i = 0; i < places.size(); ++i) after.entries_[places[i]].nearest = std::move(nearest[i]);
  return after;
}

std::optional<double> OwnDistances::Quantile(double quantile) const {
  std::vector<float> distances;
  for (const Entry& entry : entries_) {
    if (entry.nearest.member.record != nullptr) distances.push_back(entry.nearest.distance);
  }
  return QuantileOf(std::move(distances), quantile);
}

std::optional<double> OwnDistances::QuantileOf(std::vector<float> distances, double quantile) {
  if (distances.empty()) return std::nullopt;
  const double rank = std::ceil(quantile * static_cast<double>(distances.size()));
  const size_t index = std::clamp<size_t>(static_cast<size_t>(rank), 1, distances.size()) - 1;
  std::nth_element(distances.begin(), distances.begin() + static_cast<std::ptrdiff_t>(index), distances.end());
  return distances[index];
}

}  // namespace c3po
