#ifndef C3PO_CLIENT_EVAL_TIME_LEFT_H_
#define C3PO_CLIENT_EVAL_TIME_LEFT_H_

#include <cstddef>
#include <optional>

#include "absl/time/time.h"

namespace c3po {

// How long a calibration still takes at most: the points that may come at the mean time of those that were asked, no
// longer than its budget, then the check. Not thread-safe.
class TimeLeft {
 public:
  // `points_max`: that may be tried. `check_share`: questions of the check per question of the search. The search began
  // at `start`.
  TimeLeft(size_t points_max, double check_share, absl::Duration budget, absl::Time start)
      : points_max_(points_max), check_share_(check_share), budget_(budget), start_(start), point_start_(start) {}

  // A point is done. `asked`: by calls, not out of a journal.
  void OnPoint(absl::Time now, bool asked);
  // Not set before a point was asked.
  std::optional<absl::Duration> At(absl::Time now) const;

 private:
  const size_t points_max_;
  const double check_share_;
  const absl::Duration budget_;
  const absl::Time start_;
  absl::Time point_start_;
  size_t points_ = 0, asked_ = 0;
  absl::Duration of_asked_;
};

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_TIME_LEFT_H_
