#include "client/eval/report_reading.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/eval/offset_reading.h"

namespace c3po {
namespace {

// The neighbors' loss counts as fallen from this share on.
constexpr double kLossFallMin = 0.10;
constexpr double kWorsenedMaxShare = 1.0 / 3;

std::string Sentence(const ScopeSummary& scope, const MethodSummary& method, const MethodSummary* baseline) {
  std::string text =
      absl::StrCat(DisplayName(method), " answered ", method.right, " of ", scope.items, " questions right");
  if (!method.paired || baseline == nullptr) {
    return absl::StrCat(text, ": ", FormatRate(method.accuracy), " %.");
  }
  const PairedComparison& paired = *method.paired;
  absl::StrAppend(&text, " against ", baseline->right,
                  method.role == MethodRole::kOptimization ? " without" : " by the model alone", ": ",
                  FormatPoints(paired.difference.value), " points [", FormatPoints(paired.difference.low), ", ",
                  FormatPoints(paired.difference.high), "], ", paired.improved, " improved, ", paired.worsened,
                  " worsened");
  if (paired.difference.low > 0) return absl::StrCat(text, ".");
  if (paired.difference.high < 0) return absl::StrCat(text, ": a loss.");
  return absl::StrCat(text, ". The interval includes 0: no difference is shown.");
}

void AddScopeSentences(const ScopeSummary& scope, std::vector<std::string>* sentences) {
  const MethodSummary* baseline = scope.FindRole(MethodRole::kBaseline);
  for (const MethodSummary& method : scope.methods) {
    if (&method != baseline) sentences->push_back(Sentence(scope, method, baseline));
  }
}

// The lead method and what reads the same neighbors: accuracies side by side do not tell whether one is ahead.
void AddVersusSentences(const RunSummary& summary, std::vector<std::string>* sentences) {
  const MethodSummary* lead = LeadMethod(summary);
  for (const VersusBaseline& versus : summary.overall.versus) {
    if (lead == nullptr || versus.method != lead->label) continue;
    const PairedComparison& paired = versus.paired;
    const char* outcome = paired.difference.low > 0    ? "."
                          : paired.difference.high < 0 ? ": it is behind."
                                                       : ". The interval includes 0: neither is shown to be ahead.";
    sentences->push_back(absl::StrCat(
        DisplayName(*lead), " against ", versus.baseline, ", in pairs: ", FormatPoints(paired.difference), " points, ",
        paired.improved, " right that ", versus.baseline, " has wrong, ", paired.worsened, " the reverse", outcome));
  }
}

// Why a mark was missed. Each limit is told with the figure that shows it; what was not measured is said, too.
std::vector<std::string> LimitsOf(const ScopeSummary& scope, const MethodSummary& method, double wanted) {
  std::vector<std::string> limits;
  const double lift = method.paired->difference.value;
  const MethodSummary* oracle = scope.FindRole(MethodRole::kOracle);
  if (oracle == nullptr || !oracle->paired) {
    limits.push_back("Headroom was not measured: the run has no oracle.");
  } else if (oracle->paired->difference.value < 2 * wanted) {
    limits.push_back(absl::StrFormat("Headroom: even with the right answer known, re-mixing gains only %s points.",
                                     FormatPoints(oracle->paired->difference.value)));
  }
  if (method.with_losses > 0) {
    const double fall = method.mean_loss_before > 0 ? 1 - method.mean_loss_after / method.mean_loss_before : 0;
    const bool fell = fall >= kLossFallMin;
    if (fell) {
      limits.push_back(absl::StrFormat(
          "Transfer: the neighbors' loss falls by %.0f %% (%.3f to %.3f), but the questions gain %s points.",
          100 * fall, method.mean_loss_before, method.mean_loss_after, FormatPoints(lift)));
    } else {
      limits.push_back(absl::StrFormat(
          "Optimization: the neighbors' own loss hardly falls (%.3f to %.3f): more steps or a larger rate may help.",
          method.mean_loss_before, method.mean_loss_after));
    }
  }
  const MethodSummary* vote = scope.FindRole(MethodRole::kNeighborVote);
  if (vote == nullptr || !vote->paired) {
    limits.push_back("Embedding was not measured: the run has no neighbors' vote.");
  } else if (vote->paired->difference.value <= 0) {
    limits.push_back(absl::StrFormat(
        "Embedding: the neighbors' vote is right for %.1f %% of the questions, the model alone is %s: near neighbors' "
        "answers are rarely the right one.",
        100 * vote->accuracy.value, vote->paired->difference.value < 0 ? "ahead" : "level"));
  }
  return limits;
}

MarkReading ReadMark(const Mark& mark, const ScopeSummary& scope, const MethodSummary& method) {
  const PairedComparison& paired = *method.paired;
  MarkReading reading{std::string(mark.group), method.label, true, "", {}};
  std::vector<std::string> missed;
  if (paired.difference.value < mark.lift) missed.push_back("lift");
  if (mark.interval_above_zero && paired.difference.low <= 0) missed.push_back("interval above 0");
  if (paired.worsened > kWorsenedMaxShare * paired.improved) missed.push_back("worsened at most a third of improved");
  const MethodSummary* vote = scope.FindRole(MethodRole::kNeighborVote);
  std::string against_vote;
  if (mark.ahead_of_vote && vote != nullptr) {
    against_vote = absl::StrFormat(", neighbors' vote %.1f %% against %.1f %%", 100 * vote->accuracy.value,
                                   100 * method.accuracy.value);
    if (vote->accuracy.value >= method.accuracy.value) missed.push_back("ahead of the neighbors' vote");
  }
  reading.met = missed.empty();
  reading.text = absl::StrFormat("Mark of %s: at least %s points. %s reaches %s, %d improved, %d worsened%s: %s.",
                                 mark.group, FormatPoints(mark.lift), DisplayName(method),
                                 FormatPoints(paired.difference), paired.improved, paired.worsened, against_vote,
                                 reading.met ? "met" : absl::StrCat("not met (", absl::StrJoin(missed, "; "), ")"));
  if (!reading.met) reading.limits = LimitsOf(scope, method, mark.lift);
  return reading;
}

}  // namespace

const MethodSummary* LeadMethod(const RunSummary& summary) {
  const MethodSummary* lead = nullptr;
  for (const MethodSummary& method : summary.overall.methods) {
    if (method.role != MethodRole::kOptimization || !method.paired) continue;
    if (lead == nullptr || method.paired->difference.value > lead->paired->difference.value) lead = &method;
  }
  return lead;
}

std::vector<MarkReading> ReadMarks(const RunSummary& summary) {
  std::vector<MarkReading> readings;
  const MethodSummary* lead = LeadMethod(summary);
  if (lead == nullptr) return readings;
  for (const Mark& mark : kMarks) {
    for (const ScopeSummary& group : summary.groups) {
      if (group.name != mark.group) continue;
      const MethodSummary* method = group.Find(lead->label);
      if (method != nullptr && method->paired && group.items > 0) readings.push_back(ReadMark(mark, group, *method));
    }
  }
  return readings;
}

std::vector<std::string> ReadingOf(const RunSummary& summary) {
  std::vector<std::string> sentences;
  if (summary.overall.items == 0) {
    std::string text = "No question has been answered by all methods yet: there is nothing to compare.";
    if (summary.overall.left_out > 0) absl::StrAppend(&text, " ", summary.overall.left_out, " are answered by some.");
    return {text};
  }
  // First what the lift is worth: accuracies alone do not tell a method from a preference for a label.
  sentences = ReadOffset(summary);
  AddScopeSentences(summary.overall, &sentences);
  AddVersusSentences(summary, &sentences);
  if (summary.overall.left_out > 0) {
    sentences.push_back(absl::StrCat(summary.overall.left_out,
                                     " further questions were left out because not every method answered them."));
  }
  if (const MethodSummary* lead = LeadMethod(summary)) {
    std::vector<std::string> gains, losses;
    for (const ScopeSummary& task : summary.tasks) {
      const MethodSummary* method = task.Find(lead->label);
      if (method == nullptr || !method->paired || summary.tasks.size() < 2) continue;
      const Estimate& difference = method->paired->difference;
      const std::string text = absl::StrCat(task.name, " ", FormatPoints(difference));
      if (difference.low > 0) gains.push_back(text);
      if (difference.value < 0) losses.push_back(text);
    }
    if (!gains.empty()) {
      sentences.push_back(
          absl::StrCat(DisplayName(*lead), " is ahead, the interval above 0, on: ", absl::StrJoin(gains, ", "), "."));
    }
    if (!losses.empty()) {
      sentences.push_back(
          absl::StrCat(DisplayName(*lead), " is behind the model alone on: ", absl::StrJoin(losses, ", "), "."));
    }
  }
  for (const MarkReading& mark : ReadMarks(summary)) {
    sentences.push_back(mark.text);
    for (const std::string& limit : mark.limits) {
      sentences.push_back(absl::StrCat("What limits ", mark.group, ". ", limit));
    }
  }
  return sentences;
}

std::string DisplayName(const MethodSummary& method) {
  switch (method.role) {
    case MethodRole::kBaseline:
      return absl::StrCat("the model alone (", method.label, ")");
    case MethodRole::kOptimization:
      return absl::StrCat("C3PO (", method.label, ")");
    case MethodRole::kOracle:
      return absl::StrCat("The oracle (", method.label, "), which knows the answer,");
    case MethodRole::kInContext:
      return absl::StrCat("In-context learning (", method.label, ")");
    case MethodRole::kNeighborVote:
      return absl::StrCat("The neighbors' vote (", method.label, ")");
    case MethodRole::kMajority:
      return absl::StrCat("Always the references' majority label (", method.label, ")");
    case MethodRole::kBatchOffset:
      return absl::StrCat("The model alone less the questions' mean scores (", method.label, ")");
    case MethodRole::kLabelOffset:
      return absl::StrCat("The model alone with an offset fitted to the references (", method.label, ")");
  }
  return method.label;
}

std::string FormatRate(const Estimate& estimate) {
  return absl::StrFormat("%.1f [%.1f, %.1f]", 100 * estimate.value, 100 * estimate.low, 100 * estimate.high);
}

std::string FormatPoints(double difference) {
  const double points = std::round(1000 * difference) / 10;
  return points == 0 ? "0.0" : absl::StrFormat("%+.1f", points);  // Never "-0.0".
}

std::string FormatPoints(const Estimate& estimate) {
  return absl::StrCat(FormatPoints(estimate.value), " [", FormatPoints(estimate.low), ", ", FormatPoints(estimate.high),
                      "]");
}

std::string FormatShare(double share) {
  const double percent = std::round(100 * share);
  return absl::StrFormat("%.0f %%", percent == 0 ? 0 : percent);
}

std::string FormatPValue(double p) { return p < 0.0001 ? "<0.0001" : absl::StrFormat("%.4f", p); }

std::string FormatSeconds(double seconds) {
  if (seconds < 0.9995) return absl::StrFormat("%.3f", seconds);
  return seconds < 9.995 ? absl::StrFormat("%.2f", seconds) : absl::StrFormat("%.1f", seconds);
}

}  // namespace c3po
