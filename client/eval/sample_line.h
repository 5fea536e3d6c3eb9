#ifndef C3PO_CLIENT_EVAL_SAMPLE_LINE_H_
#define C3PO_CLIENT_EVAL_SAMPLE_LINE_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "c3po/v1/reference.pb.h"

namespace c3po {

// Reads {"prompt": text, "answer": text, "choices": [texts], "metadata": {name: value}, "reference_id": text}, the last
// three optional; other keys are ignored ("id" too, which data sets use for much else). Metadata that is not text is
// kept as its JSON. Whether the sample makes sense (an empty prompt, choices without the answer) is not judged.
// `unread`, which may be null, is given the names of keys that were ignored, but for "id". InvalidArgument says what is
// wrong with the line. Thread-safe.
absl::StatusOr<v1::ReferenceSample> ParseSampleLine(absl::string_view line, std::vector<std::string>* unread = nullptr);

// The line, without its end, that ParseSampleLine reads as the same sample. Pure and thread-safe.
std::string SampleLineText(const v1::ReferenceSample& sample);

// All samples of a JSONL file, blank lines passed over. NotFound; InvalidArgument as "FILE:17: why" for the first
// malformed line.
absl::StatusOr<std::vector<v1::ReferenceSample>> ReadSampleFile(const std::string& path);

// One line of a text file that is not blank, counted from 1.
struct NumberedLine {
  size_t number = 0;
  std::string text;
};

// NotFound when the file cannot be opened, DataLoss when it cannot be read to its end.
absl::StatusOr<std::vector<NumberedLine>> ReadLines(const std::string& path);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_SAMPLE_LINE_H_
