#include "server/pipeline/memory_fit.h"

#include <iterator>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/pipeline/neighborhood_parts.h"

namespace c3po {

std::string MemoryNeed(int64_t needed_bytes, absl::string_view who, int64_t limit_bytes) {
  constexpr int64_t kMebibyte = 1 << 20;
  return absl::StrCat("needs about ", (needed_bytes + kMebibyte - 1) / kMebibyte, " MiB of working memory, and ", who,
                      " may have ", limit_bytes / kMebibyte, " (--work-memory-mb)");
}

absl::StatusOr<MemoryFit> FitIntoMemory(const ModelRunner& model, int64_t limit, int prompt_positions, bool oracle,
                                        ObjectiveSpec& fitted, ObjectiveSpec& held_out, absl::Span<const int> part_of) {
  const auto estimate = [&] {
    const std::vector<ObjectiveSpec> parts = SpecsOfParts(fitted, part_of);
    int64_t bytes = 0;
    for (const ObjectiveSpec& part : parts) {
      if (!part.cases.empty()) bytes += model.ObjectiveBytes(part, prompt_positions);
    }
    if (held_out.cases.empty()) return bytes;
    return bytes + std::ssize(parts) * model.ObjectiveBytes(held_out, prompt_positions);
  };
  MemoryFit fit;
  fit.bytes = estimate();
  if (fit.bytes <= limit) return fit;
  const size_t all = fitted.cases.size() + held_out.cases.size();
  const std::string needed = MemoryNeed(fit.bytes, "a request", limit);
  if (prompt_positions > 1) {
    return absl::InvalidArgumentError(absl::StrCat("optimization.prompt_positions: optimizing ", prompt_positions,
                                                   " positions of ", all, " neighbors ", needed,
                                                   "; ask for fewer positions, layers or neighbors"));
  }
  if (oracle) return absl::InvalidArgumentError(absl::StrCat("continuations: the method ORACLE over them ", needed));
  while (fit.bytes > limit && fitted.cases.size() + held_out.cases.size() > 1) {
    (held_out.cases.empty() ? fitted : held_out).cases.pop_back();
    fit.bytes = estimate();
  }
  fit.fits = fit.bytes <= limit;
  const size_t left = fit.fits ? fitted.cases.size() + held_out.cases.size() : 0;
  fit.warning = absl::StrCat(all - left, " of ", all, " neighbors were left out: optimizing over all of them ", needed);
  return fit;
}

}  // namespace c3po
