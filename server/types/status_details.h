#ifndef C3PO_SERVER_TYPES_STATUS_DETAILS_H_
#define C3PO_SERVER_TYPES_STATUS_DETAILS_H_

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace c3po {

// What a status says beside its code and message, as payloads, until server/rpc puts it on the wire.

inline constexpr absl::string_view kReasonPayload = "c3po/reason";
inline constexpr absl::string_view kRetryAfterPayload = "c3po/retry_after_ms";
inline constexpr absl::string_view kNotANumberPayload = "c3po/not_a_number";

// The model or the encoder computes no numbers for this one text; others are served. Any other Internal is a fault of
// the server's, which would meet others too.
inline absl::Status NotANumberError(absl::string_view message) {
  absl::Status status = absl::InternalError(message);
  status.SetPayload(kNotANumberPayload, absl::Cord());
  return status;
}

inline bool IsNotANumber(const absl::Status& status) { return status.GetPayload(kNotANumberPayload).has_value(); }

// The same with other words: what it says beside them stays.
inline absl::Status Reworded(const absl::Status& status, absl::string_view message) {
  absl::Status reworded(status.code(), message);
  status.ForEachPayload([&](absl::string_view url, const absl::Cord& payload) { reworded.SetPayload(url, payload); });
  return reworded;
}

// The reason of an Unavailable for a state of the references that this server has not reached.
inline constexpr absl::string_view kBehindReason = "BEHIND";
// The reason of an Unavailable for a store that does not answer (index/base/store_away.h).
inline constexpr absl::string_view kStoreAwayReason = "STORE_AWAY";

// The reason of a ResourceExhausted for what the caller itself has used up, whoever else calls.
inline constexpr absl::string_view kRateReason = "RATE";

// One of the reasons of proto/c3po/v1/errors.md, where the code alone does not give it. No effect on OK.
inline absl::Status WithReason(absl::Status status, absl::string_view reason) {
  status.SetPayload(kReasonPayload, absl::Cord(reason));
  return status;
}

// When to try again, in [1 ms, 1 h]. No effect on OK.
inline absl::Status WithRetryAfter(absl::Status status, absl::Duration pause) {
  const absl::Duration kept = std::min(std::max(pause, absl::Milliseconds(1)), absl::Hours(1));
  status.SetPayload(kRetryAfterPayload, absl::Cord(absl::StrCat(absl::ToInt64Milliseconds(kept))));
  return status;
}

inline std::optional<std::string> ReasonOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kReasonPayload);
  if (!payload) return std::nullopt;
  return std::string(*payload);
}

inline std::optional<absl::Duration> RetryAfterOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kRetryAfterPayload);
  int64_t milliseconds = 0;
  if (!payload || !absl::SimpleAtoi(std::string(*payload), &milliseconds)) return std::nullopt;
  return absl::Milliseconds(milliseconds);
}

}  // namespace c3po

#endif  // C3PO_SERVER_TYPES_STATUS_DETAILS_H_
