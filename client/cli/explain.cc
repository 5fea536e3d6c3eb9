#include "client/cli/explain.h"

#include <algorithm>
#include <cctype>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"

namespace c3po {
namespace {

constexpr int kToldLabelsMax = 6;  // of an offset

// "METHOD_MODE_FINDING" without "METHOD_": "mode finding".
std::string Words(absl::string_view name, absl::string_view prefix) {
  std::string words(absl::StripPrefix(name, prefix));
  for (char& c : words) c = c == '_' ? ' ' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return words;
}

std::string Headline(const v1::OptimizationReport& report, const Terminal& terminal) {
  std::vector<std::string> parts = {terminal.Bold(Words(v1::Method_Name(report.method()), "METHOD_")),
                                    Words(v1::GateDecision_Name(report.gate()), "GATE_DECISION_")};
  if (!report.collection().empty()) parts.push_back(absl::StrCat("collection ", Snippet(report.collection(), 40)));
  if (report.critical_layers_size() > 0) {
    parts.push_back(absl::StrCat("critical layers ", absl::StrJoin(report.critical_layers(), ",")));
    parts.push_back(report.core_experts() == 0 ? "all experts" : absl::StrCat(report.core_experts(), " core experts"));
  }
  if (report.application_rule() != v1::APPLICATION_RULE_UNSPECIFIED) {
    parts.push_back(Words(v1::ApplicationRule_Name(report.application_rule()), "APPLICATION_RULE_"));
  }
  if (report.has_alpha()) parts.push_back(absl::StrFormat("alpha %.2f", report.alpha()));
  if (report.offset_applied()) parts.push_back("label offset applied");
  return absl::StrCat("C3PO: ", absl::StrJoin(parts, " · "), "\n");
}

std::string NeighborTable(const v1::OptimizationReport& report, const Terminal& terminal) {
  Table table("rrrlll");
  table.AddRow({"#", "distance", "weight", "model was", "neighbor", "answer"});
  const size_t prompt_width = static_cast<size_t>(std::clamp(terminal.columns - 60, 30, 100));
  int number = 0;
  for (const v1::NeighborInfo& neighbor : report.neighbors()) {
    table.AddRow({absl::StrCat(++number), absl::StrFormat("%.4f", neighbor.distance()),
                  absl::StrFormat("%.3f", neighbor.kernel_weight()), neighbor.successful() ? "right" : "wrong",
                  Snippet(neighbor.prompt(), prompt_width), Snippet(neighbor.answer(), 24)});
  }
  return table.Render(terminal);
}

std::string LossLine(const v1::OptimizationReport& report, const Terminal& terminal) {
  const double before = report.losses(0);
  const double after = report.losses(report.losses_size() - 1);
  std::string line = absl::StrFormat("neighbors' loss %.4f → %.4f", before, after);
  if (before > 0) absl::StrAppend(&line, absl::StrFormat(" (%+.1f %%)", 100 * (after - before) / before));
  const int steps = report.losses_size() - 1;
  absl::StrAppend(&line, " in ", steps, steps == 1 ? " step" : " steps");
  if (report.has_selected_step()) absl::StrAppend(&line, ", step ", report.selected_step(), " taken");
  return absl::StrCat(after < before ? terminal.Green(line) : line, "\n");
}

// The loss of the neighbors that were held out, at the start and where the search stopped looking.
std::string ValidationLine(const v1::OptimizationReport& report) {
  const int taken = report.has_selected_step()
                        ? std::min(static_cast<int>(report.selected_step()), report.validation_losses_size() - 1)
                        : report.validation_losses_size() - 1;
  return absl::StrFormat("held-out neighbors' loss %.4f → %.4f\n", report.validation_losses(0),
                         report.validation_losses(taken));
}

std::string ChangeTable(const v1::OptimizationReport& report, const Terminal& terminal) {
  Table table("rrrrr");
  table.AddRow({"layer", "expert", "before", "after", "change"});
  for (const v1::ExpertChange& change : report.largest_changes()) {
    table.AddRow({absl::StrCat(change.layer()), absl::StrCat(change.expert()), absl::StrFormat("%.4f", change.before()),
                  absl::StrFormat("%.4f", change.after()), absl::StrFormat("%+.4f", change.after() - change.before())});
  }
  return table.Render(terminal);
}

}  // namespace

std::string ExplainOptimization(const v1::OptimizationReport& report, const Terminal& terminal) {
  std::string text = Headline(report, terminal);
  if (!report.gate_reason().empty()) absl::StrAppend(&text, report.gate_reason(), "\n");
  if (report.neighbors_size() > 0) absl::StrAppend(&text, NeighborTable(report, terminal));
  if (report.losses_size() > 0) absl::StrAppend(&text, LossLine(report, terminal));
  if (report.validation_losses_size() > 0) absl::StrAppend(&text, ValidationLine(report));
  for (const std::string& warning : report.warnings())
    absl::StrAppend(&text, "warning: ", WithoutControls(warning), "\n");
  if (report.largest_changes_size() > 0) {
    absl::StrAppend(&text, "experts that moved most\n", ChangeTable(report, terminal));
  }
  return text;
}

std::string ExplainTimings(const v1::StageTimings& timings, const Terminal& terminal) {
  const std::pair<const char*, double> stages[] = {
      {"queue", timings.queue_seconds()},
      {"tokenize", timings.tokenize_seconds()},
      {"embed", timings.embed_seconds()},
      {"retrieval", timings.retrieval_seconds()},
      {"prefill", timings.prefill_seconds()},
      {"optimization", timings.optimization_seconds()},
      {"waiting for turns of it", timings.optimization_wait_seconds()},
      {"decode", timings.decode_seconds()},
      {"its first token", timings.first_token_seconds()},
      {"first token after", timings.time_to_first_token_seconds()},
  };
  Table table("lr");
  table.AddRow({"stage", "ms"});
  for (const auto& [name, seconds] : stages) {
    if (seconds > 0) table.AddRow({name, absl::StrFormat("%.1f", seconds * 1000)});
  }
  return table.Render(terminal);
}

std::string ExplainSummary(const v1::GenerationSummary& summary, const Terminal& terminal) {
  return absl::StrCat(summary.usage().prompt_tokens(), " prompt tokens, ", summary.usage().completion_tokens(),
                      " generated, finished by ",
                      Words(v1::FinishReason_Name(summary.finish_reason()), "FINISH_REASON_"), "\n",
                      ExplainTimings(summary.timings(), terminal));
}

std::string ExplainChoices(const v1::GenerationSummary& summary, const std::vector<std::string>& choices,
                           const Terminal& terminal) {
  if (summary.choice_scores_size() == 0) return "";
  const bool with_offset = summary.choice_scores(0).has_offset_score();
  Table table(with_offset ? "lrrrrl" : "lrrrl");
  std::vector<std::string> header = {"", "log-likelihood", "tokens", "per token", "choice"};
  if (with_offset) header.insert(header.end() - 1, "with offset");
  table.AddRow(header);
  for (int i = 0; i < summary.choice_scores_size() && i < static_cast<int>(choices.size()); ++i) {
    const v1::ContinuationScore& score = summary.choice_scores(i);
    const bool chosen = summary.has_chosen() && summary.chosen() == static_cast<uint32_t>(i);
    std::vector<std::string> row = {chosen ? "→" : "", absl::StrFormat("%.4f", score.log_likelihood()),
                                    absl::StrCat(score.token_count()),
                                    absl::StrFormat("%.4f", score.log_likelihood() / std::max(1u, score.token_count())),
                                    absl::StrCat("\"", Snippet(choices[static_cast<size_t>(i)], 60), "\"")};
    if (with_offset) row.insert(row.end() - 1, absl::StrFormat("%.4f", score.offset_score()));
    table.AddRow(row);
  }
  return absl::StrCat(table.Render(terminal), "\n");
}

std::string DescribeOffset(const v1::OffsetInfo& offset) {
  std::vector<std::string> labels;
  for (int i = 0; i < offset.labels_size() && i < offset.offsets_size(); ++i) {
    if (i == kToldLabelsMax) {
      labels.push_back(absl::StrCat("and ", offset.labels_size() - i, " more"));
      break;
    }
    labels.push_back(absl::StrFormat("\"%s\" %+.3f", Snippet(offset.labels(i), 24), offset.offsets(i)));
  }
  const std::string whose = offset.method() == v1::METHOD_NONE
                                ? "of the model alone"
                                : absl::StrCat("after ", Words(v1::Method_Name(offset.method()), "METHOD_"));
  return absl::StrFormat("%s: scale %.4g, %s, %d references, accuracy %.1f → %.1f %%", whose, offset.scale(),
                         absl::StrJoin(labels, ", "), offset.references(), 100 * offset.accuracy_before(),
                         100 * offset.accuracy_after());
}

std::string PriorAccuracies(const v1::PriorInfo& prior) {
  if (!prior.has_validation_accuracy_before() || !prior.has_validation_accuracy_after()) return "";
  return absl::StrFormat(", held-out accuracy %.1f → %.1f %%", 100 * prior.validation_accuracy_before(),
                         100 * prior.validation_accuracy_after());
}

}  // namespace c3po
