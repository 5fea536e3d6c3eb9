#include "client/eval/changed_answers.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/eval/report_svg.h"

namespace c3po {
namespace {

constexpr size_t kChangedItemsMax = 200;
constexpr size_t kTextMax = 300;  // bytes of a text that are shown
constexpr size_t kNeighborTextMax = 120;
constexpr size_t kNeighborsMax = 6;

// The end of a prompt is what is asked; its beginning may be instructions that all prompts share.
std::string Shortened(absl::string_view text, size_t bytes_max) {
  text = absl::StripAsciiWhitespace(text);
  if (text.size() <= bytes_max) return std::string(text);
  const auto inside = [&](size_t at) { return (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80; };
  size_t head = bytes_max / 3, tail = text.size() - (bytes_max - head);
  while (head > 0 && inside(head)) --head;  // Not within a character.
  while (tail < text.size() && inside(tail)) ++tail;
  return absl::StrCat(text.substr(0, head), " … ", text.substr(tail));
}

std::string ChoiceText(const QuestionText* question, int choice) {
  if (choice < 0) return "none";
  if (question == nullptr || static_cast<size_t>(choice) >= question->choices.size()) {
    return absl::StrCat("choice ", choice + 1);
  }
  return Shortened(question->choices[choice], kTextMax);
}

std::string AnswerOf(const ItemResult& item, const QuestionText* question) {
  if (item.gold >= 0 || item.predicted >= 0) return ChoiceText(question, item.predicted);
  return Shortened(item.extracted.empty() ? item.text : item.extracted, kTextMax);
}

std::string WantedOf(const ItemResult& item, const QuestionText* question) {
  return item.gold >= 0 ? ChoiceText(question, item.gold) : Shortened(item.wanted, kTextMax);
}

std::string NeighborCell(const ReportInput& input, const ItemResult& item) {
  std::string cell;
  for (size_t i = 0; i < std::min(item.neighbor_ids.size(), kNeighborsMax); ++i) {
    const ReferenceText* reference = input.FindReference(item.neighbor_ids[i]);
    cell += "<div>";
    if (i < item.neighbor_distances.size()) {
      absl::StrAppendFormat(&cell, "<span class=\"soft\">%.3f</span> ", item.neighbor_distances[i]);
    }
    if (reference == nullptr) {
      cell += EscapeHtml(item.neighbor_ids[i]);
    } else {
      absl::StrAppend(&cell, EscapeHtml(Shortened(reference->prompt, kNeighborTextMax)), " <b>",
                      EscapeHtml(Shortened(reference->answer, kNeighborTextMax)), "</b>");
    }
    cell += "</div>";
  }
  if (item.neighbor_ids.size() > kNeighborsMax) {
    absl::StrAppend(&cell, "<div class=\"soft\">and ", item.neighbor_ids.size() - kNeighborsMax, " more</div>");
  }
  return cell;
}

void AppendRow(const ReportInput& input, const ItemChange& change, bool with_task, std::string* out) {
  const ItemResult& after = *change.after;
  const QuestionText* question = input.FindQuestion(after.task, after.id);
  const std::string asked = question == nullptr ? after.id : Shortened(question->prompt, kTextMax);
  *out += "<tr>";
  if (with_task) absl::StrAppend(out, "<td>", EscapeHtml(after.task), "</td>");
  absl::StrAppend(out, "<td class=\"text\" title=\"", EscapeHtml(after.id), "\">", EscapeHtml(asked), "</td>");
  for (const std::string& cell :
       {AnswerOf(*change.before, question), AnswerOf(after, question), WantedOf(after, question)}) {
    absl::StrAppend(out, "<td class=\"text\">", EscapeHtml(cell), "</td>");
  }
  absl::StrAppend(out, "<td class=\"text\">", NeighborCell(input, after), "</td><td>");
  if (after.losses.size() >= 2) {
    absl::StrAppendFormat(out, "%.3f &rarr; %.3f", after.losses.front(), after.losses.back());
  }
  *out += "</td></tr>\n";
}

}  // namespace

std::string ChangedAnswers(const ReportInput& input, const std::vector<ItemChange>& changes) {
  std::string out;
  const bool with_task = input.tasks.size() > 1;
  for (const Change kind : {Change::kWorsened, Change::kImproved}) {
    const auto count = static_cast<size_t>(
        std::count_if(changes.begin(), changes.end(), [&](const ItemChange& each) { return each.change == kind; }));
    if (count == 0) continue;
    const size_t shown = std::min(count, kChangedItemsMax / 2);
    absl::StrAppend(&out, "<details><summary>", count, kind == Change::kImproved ? " improved" : " worsened");
    if (shown < count) absl::StrAppend(&out, " (the first ", shown, ")");
    absl::StrAppend(&out, "</summary>\n<div class=\"scroll\"><table class=\"left\"><thead><tr>",
                    with_task ? "<th>task</th>" : "",
                    "<th>question</th><th>before</th><th>after</th><th>right answer</th>"
                    "<th>neighbors: distance, question, answer</th><th>loss</th></tr></thead><tbody>\n");
    size_t written = 0;
    for (const ItemChange& change : changes) {
      if (change.change != kind || written == shown) continue;
      ++written;
      AppendRow(input, change, with_task, &out);
    }
    out += "</tbody></table></div>\n</details>\n";
  }
  return out;
}

}  // namespace c3po
