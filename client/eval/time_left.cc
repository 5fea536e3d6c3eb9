#include "client/eval/time_left.h"

#include <algorithm>

namespace c3po {

void TimeLeft::OnPoint(absl::Time now, bool asked) {
  ++points_;
  if (asked) {
    ++asked_;
    of_asked_ += now - point_start_;
  }
  point_start_ = now;
}

std::optional<absl::Duration> TimeLeft::At(absl::Time now) const {
  if (asked_ == 0) return std::nullopt;
  const absl::Duration mean = of_asked_ / static_cast<int64_t>(asked_);
  const auto points_left = static_cast<int64_t>(points_max_ - std::min(points_, points_max_));
  // The point that is being asked has taken some of its time.
  const absl::Duration search = points_left * mean - std::min(now - point_start_, mean);
  const absl::Duration of_budget = start_ + budget_ - now;
  return std::max(absl::ZeroDuration(), std::min(search, of_budget)) + check_share_ * mean;
}

}  // namespace c3po
