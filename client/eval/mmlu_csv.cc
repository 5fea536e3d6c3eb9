#include <array>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "client/eval/benchmark_format.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr std::array<absl::string_view, 6> kColumns = {"question", "A", "B", "C", "D", "answer"};

struct CsvRow {
  size_t line = 0;  // where it begins, from 1
  std::vector<std::string> cells;
};

// RFC 4180: a quoted cell may hold commas, line breaks, and quotes written twice.
absl::StatusOr<std::vector<CsvRow>> ParseCsv(const std::string& path, absl::string_view text) {
  std::vector<CsvRow> rows;
  size_t line = 1;
  size_t at = 0;
  while (at < text.size()) {
    CsvRow row;
    row.line = line;
    bool row_ends = false;
    while (!row_ends) {
      std::string cell;
      if (at < text.size() && text[at] == '"') {
        bool closed = false;
        for (++at; at < text.size(); ++at) {
          if (text[at] == '"' && at + 1 < text.size() && text[at + 1] == '"') {
            ++at;
          } else if (text[at] == '"') {
            closed = true;
            ++at;
            break;
          }
          line += text[at] == '\n' ? 1 : 0;
          cell += text[at];
        }
        if (!closed) {
          return absl::InvalidArgumentError(absl::StrCat(path, ":", row.line, ": a quoted cell does not end"));
        }
      }
      while (at < text.size() && text[at] != ',' && text[at] != '\n') cell += text[at++];
      row_ends = at >= text.size() || text[at] == '\n';
      if (row_ends && !cell.empty() && cell.back() == '\r') cell.pop_back();
      row.cells.push_back(std::move(cell));
      ++at;
    }
    ++line;
    if (row.cells.size() > 1 || !row.cells[0].empty()) rows.push_back(std::move(row));
  }
  return rows;
}

// "data/test/abstract_algebra_test.csv": "abstract_algebra".
std::string SubjectOf(const std::string& path) {
  const std::string stem = std::filesystem::path(path).stem().string();
  absl::string_view subject = stem;
  for (const absl::string_view split : {"_test", "_val", "_dev"}) {
    if (absl::ConsumeSuffix(&subject, split)) break;
  }
  return std::string(subject);
}

absl::StatusOr<TaskItem> MakeItem(const CsvRow& row, const std::string& subject, size_t number) {
  if (row.cells.size() != kColumns.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(row.cells.size(), " columns, expected ", kColumns.size(), ": question,A,B,C,D,answer"));
  }
  for (size_t i = 0; i < kColumns.size(); ++i) {
    if (absl::StripAsciiWhitespace(row.cells[i]).empty()) {
      return absl::InvalidArgumentError(absl::StrCat("\"", kColumns[i], "\" is empty"));
    }
  }
  const absl::string_view answer = absl::StripAsciiWhitespace(row.cells[5]);
  if (answer.size() != 1 || answer[0] < 'A' || answer[0] > 'D') {
    return absl::InvalidArgumentError(absl::StrCat("\"answer\" is \"", answer, "\", must be A, B, C or D"));
  }
  return MmluItem(absl::StrCat(subject, "/", number), subject, row.cells[0],
                  std::vector<std::string>(row.cells.begin() + 1, row.cells.begin() + 5), answer[0] - 'A');
}

}  // namespace

TaskItem MmluItem(std::string id, absl::string_view subject, absl::string_view question,
                  const std::vector<std::string>& texts, int gold) {
  TaskItem item;
  item.id = std::move(id);
  item.prompt =
      absl::StrCat("The following is a multiple choice question (with answer) about ",
                   absl::StrReplaceAll(subject, {{"_", " "}}), ".\n\n", absl::StripAsciiWhitespace(question), "\n");
  for (size_t choice = 0; choice < texts.size(); ++choice) {
    const std::string letter(1, static_cast<char>('A' + choice));
    absl::StrAppend(&item.prompt, letter, ". ", absl::StripAsciiWhitespace(texts[choice]), "\n");
    item.choices.push_back(absl::StrCat(" ", letter));
  }
  absl::StrAppend(&item.prompt, "Answer:");
  item.gold = gold;
  item.answer = item.choices[gold];
  return item;
}

absl::StatusOr<std::vector<TaskItem>> ReadMmluCsv(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be opened"));
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  C3PO_ASSIGN_OR_RETURN(const std::vector<CsvRow> rows, ParseCsv(path, text));
  const std::string subject = SubjectOf(path);
  std::vector<TaskItem> items;
  for (const CsvRow& row : rows) {
    if (items.empty() && row.cells.back() == "answer") continue;  // a header
    absl::StatusOr<TaskItem> item = MakeItem(row, subject, items.size());
    if (!item.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ":", row.line, ": ", item.status().message()));
    }
    items.push_back(*std::move(item));
  }
  return items;
}

}  // namespace c3po
