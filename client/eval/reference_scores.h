#ifndef C3PO_CLIENT_EVAL_REFERENCE_SCORES_H_
#define C3PO_CLIENT_EVAL_REFERENCE_SCORES_H_

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/eval/item_result.h"

namespace c3po {

// What the model alone says of a task's references, kept in the run's folder as reference_scores.jsonl: of every
// reference its label, of some the scores of the labels. The baselines that read labels are made of it, and a run that
// goes on asks for none of them again.

struct ReferenceScore {
  std::string prompt;
  std::vector<std::string> choices;  // the task's labels, as they were scored
  // task, id (the reference's) and gold are set; log_likelihoods, token_counts and byte_counts once it was scored.
  ItemResult answer;

  bool scored() const { return !answer.log_likelihoods.empty(); }
};

// One line of JSON without a newline: "prompt", "choices", "answer".
std::string ToJsonLine(const ReferenceScore& reference);

// All references of a file's text, in the order in which they first come; of several lines of one task and id the last
// counts. A line that cannot be read, such as one that a kill cut short, or that does not fit together, is passed over.
std::vector<ReferenceScore> ParseReferenceScores(absl::string_view lines);

// The file of one run's folder. Used by one thread at a time.
class ReferenceScoreFile {
 public:
  // Holds `references` afterwards, with the scores that the file has of those that did not change: same task, id,
  // prompt, choices and label. What else the file holds is dropped. Unavailable: it cannot be written.
  static absl::StatusOr<std::unique_ptr<ReferenceScoreFile>> Open(const std::string& folder,
                                                                  std::vector<ReferenceScore> references);
  ~ReferenceScoreFile();
  ReferenceScoreFile(const ReferenceScoreFile&) = delete;
  ReferenceScoreFile& operator=(const ReferenceScoreFile&) = delete;

  const std::vector<ReferenceScore>& references() const { return references_; }
  // Puts the scores in the place of those of references()[index], and flushes them to the file.
  absl::Status SetAnswer(size_t index, const ItemResult& answer);

 private:
  ReferenceScoreFile(std::string path, std::vector<ReferenceScore> references)
      : path_(std::move(path)), references_(std::move(references)) {}

  const std::string path_;
  std::vector<ReferenceScore> references_;
  std::FILE* file_ = nullptr;
};

// FOLDER/reference_scores.jsonl; nothing where there is no such file.
std::vector<ReferenceScore> ReadReferenceScores(const std::string& folder);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_REFERENCE_SCORES_H_
