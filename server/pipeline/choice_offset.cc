#include "server/pipeline/choice_offset.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "index/base/status_macros.h"
#include "index/base/utf8.h"
#include "index/types/optimization_terms.h"

namespace c3po {
namespace {

constexpr size_t kToldLabelsMax = 8, kToldBytesMax = 40;  // of a warning

// Absent where the continuations are not the labels, each once.
std::optional<LabelOffset> InOrderOf(absl::Span<const std::string> continuations, const CollectionOffset& offset) {
  if (continuations.size() != offset.labels.size()) return std::nullopt;
  LabelOffset ordered;
  ordered.scale = offset.fitted.scale;
  std::vector<bool> taken(offset.labels.size(), false);
  for (const std::string& continuation : continuations) {
    const auto label = std::find(offset.labels.begin(), offset.labels.end(), continuation);
    if (label == offset.labels.end()) return std::nullopt;
    const auto index = static_cast<size_t>(label - offset.labels.begin());
    if (taken[index]) return std::nullopt;
    taken[index] = true;
    ordered.offsets.push_back(offset.fitted.offsets[index]);
  }
  return ordered;
}

std::string TellLabels(const std::vector<std::string>& labels) {
  std::vector<std::string> told;
  for (const std::string& label : labels) {
    if (told.size() == kToldLabelsMax) break;
    const absl::string_view cut = Utf8Prefix(label, kToldBytesMax);
    told.push_back(absl::StrCat("\"", cut, cut.size() < label.size() ? "…" : "", "\""));
  }
  return absl::StrCat(absl::StrJoin(told, ", "), labels.size() > told.size() ? ", …" : "");
}

}  // namespace

absl::StatusOr<ChoiceOffset> ResolveOffset(LabelOffsets* offsets, const OptimizationSettings& settings,
                                           bool may_be_missing, absl::Span<const std::string> continuations) {
  ChoiceOffset result;
  std::shared_ptr<const CollectionOffset> offset;
  if (offsets != nullptr) {
    C3PO_ASSIGN_OR_RETURN(offset, offsets->FittedAfter(settings));
    if (!offset && settings.method != Method::kNone) {
      C3PO_ASSIGN_OR_RETURN(offset, offsets->OfModelAlone(settings.collection));
      if (offset) {
        result.warning = absl::StrCat("the label offset is that of the model alone: collection \"", settings.collection,
                                      "\" has none that was fitted after these settings (c3po refs tune --offset "
                                      "--method ",
                                      TermOf(settings.method).flag, ")");
      }
    }
  }
  if (!offset) {
    std::string missing = absl::StrCat("collection \"", settings.collection,
                                       "\" has no label offset for this model: TuneOffset (c3po refs tune --offset) "
                                       "makes one");
    if (!may_be_missing) return absl::NotFoundError(missing);
    result.warning = absl::StrCat("the choices are scored without a label offset: ", missing);
    return result;
  }
  result.applied = InOrderOf(continuations, *offset);
  if (!result.applied) {
    result.warning = absl::StrCat("the label offset is not applied: the choices are not its labels, which are ",
                                  TellLabels(offset->labels));
  }
  return result;
}

void ApplyOffset(const LabelOffset& offset, std::vector<ContinuationScore>& scores) {
  for (size_t i = 0; i < scores.size(); ++i) {
    scores[i].offset_score = offset.scale * scores[i].per_token() + offset.offsets[i];
  }
}

}  // namespace c3po
