#include "client/cli/terminal.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"

namespace c3po {
namespace {

bool StartsCodePoint(char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }

size_t CodePoints(absl::string_view text) { return std::count_if(text.begin(), text.end(), StartsCodePoint); }

std::string Colored(bool color, absl::string_view code, absl::string_view text) {
  return color ? absl::StrCat("\x1b[", code, "m", text, "\x1b[0m") : std::string(text);
}

}  // namespace

Terminal Terminal::Detect() {
  Terminal terminal;
  terminal.stdin_is_terminal = isatty(STDIN_FILENO) == 1;
  terminal.stdout_is_terminal = isatty(STDOUT_FILENO) == 1;
  terminal.stderr_is_terminal = isatty(STDERR_FILENO) == 1;
  const char* no_color = std::getenv("NO_COLOR");
  const char* term = std::getenv("TERM");
  const bool knows_color = term != nullptr && absl::string_view(term) != "dumb";
  terminal.color = terminal.stdout_is_terminal && knows_color && (no_color == nullptr || *no_color == '\0');
  winsize size = {};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) terminal.columns = size.ws_col;
  return terminal;
}

std::string Terminal::Bold(absl::string_view text) const { return Colored(color, "1", text); }
std::string Terminal::Dim(absl::string_view text) const { return Colored(color, "2", text); }
std::string Terminal::Green(absl::string_view text) const { return Colored(color, "32", text); }

std::string WithoutControls(absl::string_view text) {
  std::string shown(text);
  for (char& c : shown) {
    const unsigned char byte = static_cast<unsigned char>(c);
    if ((byte < 0x20 && c != '\n' && c != '\t') || byte == 0x7f) c = '?';
  }
  return shown;
}

std::string Snippet(absl::string_view text, size_t width) {
  const std::string clean = WithoutControls(text);
  const size_t total = CodePoints(clean);
  std::string snippet;
  size_t taken = 0;
  for (const char c : clean) {
    if (StartsCodePoint(c) && total > width && taken + 1 >= width) {
      absl::StrAppend(&snippet, "…");
      break;
    }
    taken += StartsCodePoint(c) ? 1 : 0;
    if (c == '\n') {
      absl::StrAppend(&snippet, "⏎");
    } else {
      snippet += c == '\t' ? ' ' : c;
    }
  }
  return snippet;
}

std::string ShellWord(absl::string_view argument) {
  const bool plain = !argument.empty() && argument.find_first_not_of(
                                              "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                              "-_./,:=@%+") == absl::string_view::npos;
  if (plain) return std::string(argument);
  std::string quoted = "'";
  for (const char c : argument) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

void Table::AddRow(std::vector<std::string> cells) {
  cells.resize(alignment_.size());
  rows_.push_back(std::move(cells));
}

std::string Table::Render(const Terminal& terminal) const {
  std::vector<size_t> widths(alignment_.size(), 0);
  for (const std::vector<std::string>& row : rows_) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], CodePoints(row[i]));
  }
  std::string rendered;
  for (size_t r = 0; r < rows_.size(); ++r) {
    std::string line;
    for (size_t i = 0; i < widths.size(); ++i) {
      const std::string padding(widths[i] - CodePoints(rows_[r][i]), ' ');
      absl::StrAppend(&line, "  ", alignment_[i] == 'r' ? padding : "", rows_[r][i],
                      alignment_[i] == 'r' ? "" : padding);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    absl::StrAppend(&rendered, r == 0 ? terminal.Dim(line) : line, "\n");
  }
  return rendered;
}

ProgressLine::ProgressLine(const Terminal& terminal, absl::string_view unit, uint64_t total)
    : bar_(terminal.stderr_is_terminal),
      unit_(unit),
      total_(total),
      next_(bar_ ? absl::InfinitePast() : absl::Now() + absl::Seconds(5)) {}

void ProgressLine::Update(uint64_t done, absl::string_view note) {
  const absl::Time now = absl::Now();
  if (now < next_) return;
  next_ = now + (bar_ ? absl::Milliseconds(100) : absl::Seconds(5));
  const std::string count = total_ > 0 ? absl::StrCat(done, "/", total_, " ", unit_) : absl::StrCat(done, " ", unit_);
  if (!bar_) {
    absl::FPrintF(stderr, "%s  %s\n", count, note);
    return;
  }
  std::string bar;
  if (total_ > 0) {
    constexpr uint64_t kBarWidth = 30;
    const uint64_t filled = std::min(done, total_) * kBarWidth / total_;
    for (uint64_t i = 0; i < kBarWidth; ++i) absl::StrAppend(&bar, i < filled ? "█" : "░");
    absl::StrAppend(&bar, " ");
  }
  absl::FPrintF(stderr, "\r\x1b[K%s%s  %s", bar, count, note);
  std::fflush(stderr);
  drawn_ = true;
}

void ProgressLine::Clear() {
  if (drawn_) absl::FPrintF(stderr, "\r\x1b[K");
  drawn_ = false;
  if (bar_) next_ = absl::InfinitePast();
}

}  // namespace c3po
