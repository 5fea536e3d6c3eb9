#ifndef C3PO_CLIENT_EVAL_HTML_REPORT_H_
#define C3PO_CLIENT_EVAL_HTML_REPORT_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace c3po {

// One HTML file that shows the runs in these folders (what `c3po eval` writes): a reading in plain words, plots,
// tables, settings, changed answers, and how to make it again. It holds all that it shows: no script, and nothing is
// loaded from anywhere. All text that comes from the runs is escaped. Several folders are shown as one run: tasks and
// methods are joined by name. Errors: those of ReadRunFolders (report_input.h). A run without items gives a report that
// says so.
absl::StatusOr<std::string> RenderHtmlReport(absl::Span<const std::string> folders);
absl::StatusOr<std::string> RenderHtmlReport(absl::string_view folder);

// Renders and writes `file` as a whole. Errors as above, or of the file system, naming `file`.
absl::Status WriteHtmlReport(absl::Span<const std::string> folders, const std::string& file);
absl::Status WriteHtmlReport(absl::string_view folder, const std::string& file);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_HTML_REPORT_H_
