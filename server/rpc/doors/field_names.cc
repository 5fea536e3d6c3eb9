#include "server/rpc/doors/field_names.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/types/status_details.h"

namespace c3po {

absl::Status InTheirWords(const absl::Status& status, absl::Span<const FieldName> names) {
  if (status.ok()) return status;
  for (const FieldName& name : names) {
    if (!absl::StartsWith(status.message(), name.ours)) continue;
    const absl::string_view rest = status.message().substr(name.ours.size());
    const bool whole = absl::EndsWith(name.ours, ".");
    if (!whole && !absl::StartsWith(rest, ".") && !absl::StartsWith(rest, "[") && !absl::StartsWith(rest, ": "))
      continue;
    return Reworded(status, absl::StrCat(name.theirs, rest));
  }
  return status;
}

}  // namespace c3po
