#ifndef C3PO_TESTS_BENCH_MARKDOWN_TABLE_H_
#define C3PO_TESTS_BENCH_MARKDOWN_TABLE_H_

#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace c3po {

// Rows appear on stdout as they are known, since the next one may take minutes.
class MarkdownTable {
 public:
  MarkdownTable(const std::string& caption, const std::vector<std::string>& columns) {
    std::printf("\n%s\n\n", caption.c_str());
    Row(columns);
    std::string rule = "|";
    for (size_t i = 0; i < columns.size(); ++i) rule += "---|";
    std::printf("%s\n", rule.c_str());
  }

  void Row(const std::vector<std::string>& cells) {
    std::printf("%s\n", absl::StrCat("| ", absl::StrJoin(cells, " | "), " |").c_str());
    std::fflush(stdout);
  }
};

}  // namespace c3po

#endif  // C3PO_TESTS_BENCH_MARKDOWN_TABLE_H_
