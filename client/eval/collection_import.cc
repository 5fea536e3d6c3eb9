#include "client/eval/collection_import.h"

#include <optional>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"

namespace c3po {

absl::StatusOr<std::vector<std::string>> ImportSamples(Client& client, const std::string& collection,
                                                       absl::Span<const v1::ReferenceSample> samples,
                                                       absl::FunctionRef<void(size_t)> on_progress,
                                                       const CallOptions& options) {
  std::vector<std::string> ids(samples.size());
  size_t next = 0;
  size_t done = 0;
  absl::Status malformed;
  C3PO_RETURN_IF_ERROR(client.AddReferences(
      collection,
      [&]() -> absl::StatusOr<std::optional<NumberedSample>> {
        if (next == samples.size()) return std::optional<NumberedSample>();
        const size_t index = next++;
        return NumberedSample{index + 1, samples[index]};
      },
      [&](const v1::AddReferencesResponse& response) {
        for (const v1::SampleVerdict& verdict : response.verdicts()) {
          if (verdict.sequence() < 1 || verdict.sequence() > samples.size()) continue;
          ids[verdict.sequence() - 1] = verdict.id();
          if (verdict.verdict() == v1::VERDICT_MALFORMED && malformed.ok()) {
            malformed =
                absl::InvalidArgumentError(absl::StrCat("sample ", verdict.sequence(), ": ", verdict.message()));
          }
          ++done;
        }
        on_progress(done);
        return true;
      },
      ImportOptions(), options));
  C3PO_RETURN_IF_ERROR(malformed);
  return ids;
}

}  // namespace c3po
