#ifndef C3PO_TESTS_GPU_MARKS_TABLE_H_
#define C3PO_TESTS_GPU_MARKS_TABLE_H_

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "tests/bench/markdown_table.h"
#include "tests/bench/timing.h"

namespace c3po {

inline constexpr double kMarksBandwidth = 4.3e12;  // bytes a second, that the marks are of

[[noreturn]] inline void Fail(const std::string& what) {
  std::fprintf(stderr, "gpu_marks: %s\n", what.c_str());
  std::exit(1);
}

// Rows of what was measured, beside their floors and marks.
class MarksTable {
 public:
  MarksTable(bool has_times, double bandwidth, const std::string& caption)
      : has_times_(has_times),
        bandwidth_(bandwidth),
        table_(caption, {"", "measured", "floor", "share of the floor", "mark"}) {}

  // Median of `seconds`. Bytes 0: the work has no floor by bytes. Marks are in milliseconds at kMarksBandwidth; 0:
  // none.
  void Row(const std::string& what, const std::vector<double>& seconds, double bytes, double mark_ms) {
    const double measured = Median(seconds), floor = bytes / bandwidth_;
    if (!has_times_) {
      table_.Row({what, "runs", bytes > 0 ? absl::StrFormat("%.3g MB", bytes / 1e6) : "–", "–", "–"});
      return;
    }
    table_.Row({what, Milliseconds(measured), bytes > 0 ? Milliseconds(floor) : "–",
                bytes > 0 ? absl::StrFormat("%.0f %%", 100 * floor / measured) : "–",
                mark_ms > 0 ? "≤ " + Milliseconds(mark_ms / 1e3 * kMarksBandwidth / bandwidth_) : "–"});
  }

 private:
  static std::string Milliseconds(double seconds) { return absl::StrFormat("%.3f ms", seconds * 1e3); }

  const bool has_times_;
  const double bandwidth_;
  MarkdownTable table_;
};

}  // namespace c3po

#endif  // C3PO_TESTS_GPU_MARKS_TABLE_H_
