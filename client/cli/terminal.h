#ifndef C3PO_CLIENT_CLI_TERMINAL_H_
#define C3PO_CLIENT_CLI_TERMINAL_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace c3po {

// What stdout and stderr are. Colors only on a terminal that knows them, and never under NO_COLOR (no-color.org).
struct Terminal {
  bool stdin_is_terminal = false;
  bool stdout_is_terminal = false;
  bool stderr_is_terminal = false;
  bool color = false;  // of stdout
  int columns = 100;   // of stdout

  static Terminal Detect();

  std::string Bold(absl::string_view text) const;
  std::string Dim(absl::string_view text) const;
  std::string Green(absl::string_view text) const;
};

// Text of the model or of a reference as a terminal may show it: control characters other than newline and tab become
// "?", so that no escape sequence reaches the terminal.
std::string WithoutControls(absl::string_view text);

// The start of a text on one line, at most `width` code points, with "…" where it was cut. Line breaks show as "⏎".
std::string Snippet(absl::string_view text, size_t width);

// A command's argument as a shell takes it: in single quotes where it holds anything but letters, digits and a few marks.
std::string ShellWord(absl::string_view argument);

// Columns aligned by code points; the first row is the header.
class Table {
 public:
  // `alignment`: one 'l' or 'r' per column.
  explicit Table(absl::string_view alignment) : alignment_(alignment) {}
  void AddRow(std::vector<std::string> cells);
  // Rows indented by two spaces, no trailing spaces, a newline after each; the header dimmed.
  std::string Render(const Terminal& terminal) const;

 private:
  const std::string alignment_;
  std::vector<std::vector<std::string>> rows_;
};

// Progress on stderr: a bar that redraws itself on a terminal, else a line every few seconds.
class ProgressLine {
 public:
  // `total` 0: not known.
  ProgressLine(const Terminal& terminal, absl::string_view unit, uint64_t total);
  // Shows `done`, with `note` after it, unless it was shown a moment ago.
  void Update(uint64_t done, absl::string_view note);
  // Clears the bar, so that a line can be printed; the next Update draws it again.
  void Clear();

 private:
  const bool bar_;
  const std::string unit_;
  const uint64_t total_;
  absl::Time next_;
  bool drawn_ = false;
};

}  // namespace c3po

#endif  // C3PO_CLIENT_CLI_TERMINAL_H_
