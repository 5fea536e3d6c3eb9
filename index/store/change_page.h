#ifndef C3PO_INDEX_STORE_CHANGE_PAGE_H_
#define C3PO_INDEX_STORE_CHANGE_PAGE_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace c3po {

// Which changes ReferenceStore::ChangesSince returns at once, whichever database holds them. Pure.

// The generations (after, through]; `latest` is the store's.
struct ChangePage {
  int64_t after = 0, through = 0, latest = 0;
  bool from_start = false;  // Then every row, whatever its generation.
  bool more() const { return through < latest; }
};

// `beyond`: the generation of the first row that does not fit the limit any more, rows being ordered by generation; 0:
// all fit. `others_before`: whether a row after `after` has a lower generation than that. Where none has, the change
// alone is larger than the limit, and is taken whole.
inline ChangePage PageUpTo(int64_t after, int64_t latest, int64_t beyond, bool others_before) {
  const int64_t through = beyond == 0 ? latest : others_before ? beyond - 1 : beyond;
  return {after, through, latest, false};
}

inline absl::Status CheckChangeRequest(int64_t generation, int limit) {
  if (generation < 0) {
    return absl::InvalidArgumentError(absl::StrCat("generation: ", generation, ", must not be negative"));
  }
  if (limit < 1) return absl::InvalidArgumentError(absl::StrCat("limit: ", limit, ", must be at least 1"));
  return absl::OkStatus();
}

// Every so many generations, forgotten are erasures beyond StoreOptions::erasures_max: counting them costs a scan.
inline constexpr int64_t kForgetErasuresEvery = 16;

}  // namespace c3po

#endif  // C3PO_INDEX_STORE_CHANGE_PAGE_H_
