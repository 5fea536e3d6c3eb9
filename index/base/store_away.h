#ifndef C3PO_INDEX_BASE_STORE_AWAY_H_
#define C3PO_INDEX_BASE_STORE_AWAY_H_

#include "absl/status/status.h"
#include "absl/strings/cord.h"
#include "absl/strings/string_view.h"

namespace c3po {

// A store that cannot be reached at the moment: its database is away or busy, or does not answer in time. What is held
// in memory is served on; the same change may be made again later. The mark survives absl::Status(code, message) only
// where the payload is copied.

inline constexpr absl::string_view kStoreAwayPayload = "c3po/store_away";

// Unavailable, marked.
inline absl::Status StoreAwayError(absl::string_view message) {
  absl::Status status = absl::UnavailableError(message);
  status.SetPayload(kStoreAwayPayload, absl::Cord());
  return status;
}

inline bool IsStoreAway(const absl::Status& status) {
  return absl::IsUnavailable(status) && status.GetPayload(kStoreAwayPayload).has_value();
}

}  // namespace c3po

#endif  // C3PO_INDEX_BASE_STORE_AWAY_H_
