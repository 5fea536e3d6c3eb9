#ifndef C3PO_CLIENT_EVAL_ANSWER_JOURNAL_H_
#define C3PO_CLIENT_EVAL_ANSWER_JOURNAL_H_

#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "c3po/v1/options.pb.h"
#include "client/eval/calibration.h"
#include "client/eval/item_result.h"
#include "client/eval/task.h"

namespace c3po {

// FNV-1a of 64 bits over texts and their lengths: the same on every machine, to tell whether two things are the same,
// not to keep anybody from forging them.
class Fingerprint {
 public:
  Fingerprint& Add(absl::string_view text);
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 14695981039346656037u;
};

// The answers of a calibration, each kept in a file as it comes, so that one that was ended goes on where it was: it
// asks again for what it has asked, in the same order, and is answered from here. Lines of JSON: first what the answers
// depend on besides options and question, then an answer each. Thread-safe.
class AnswerJournal {
 public:
  // Goes on with the file, or begins it anew where it is absent, of another `identity`, or damaged. `identity`: one
  // line of JSON, whose "kept_by" tells journals from other files. Its folder is made. A last line that a kill cut
  // short is taken off. The file is locked (flock) as long as this object lives, or until Remove. FailedPrecondition:
  // the file holds something else, and is left as it is; or another journal has it open. Unavailable: it cannot be
  // written.
  static absl::StatusOr<std::unique_ptr<AnswerJournal>> Open(const std::string& path, const std::string& identity);
  ~AnswerJournal();
  AnswerJournal(const AnswerJournal&) = delete;
  AnswerJournal& operator=(const AnswerJournal&) = delete;

  // The answer to a question under these options.
  std::optional<ItemResult> Find(const v1::OptimizationOptions& options, const TaskItem& item) const;
  // Flushed to the file before it returns. Unavailable: it cannot be written.
  absl::Status Append(const v1::OptimizationOptions& options, const TaskItem& item, const ItemResult& answer);
  // Nothing is kept any longer: the calibration is complete.
  void Remove();

  // How many answers the file held when it was opened.
  size_t resumed() const { return resumed_; }
  const std::string& path() const { return path_; }

 private:
  explicit AnswerJournal(std::string path) : path_(std::move(path)) {}
  // Whether the file is a journal of this identity, with all its answers read. FailedPrecondition: no journal.
  absl::StatusOr<bool> Read(const std::string& identity) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const std::string path_;
  size_t resumed_ = 0;
  mutable absl::Mutex mu_;
  std::FILE* file_ ABSL_GUARDED_BY(mu_) = nullptr;
  std::unordered_map<std::string, ItemResult> answers_ ABSL_GUARDED_BY(mu_);
};

// Answers from the journal what it holds, and asks `asked` for the rest.
class RememberingScorer : public CalibrationScorer {
 public:
  // None is owned; all outlive this object. `asked` writes its answers into the journal as they come.
  RememberingScorer(const Task* task, CalibrationScorer* asked, const AnswerJournal* journal)
      : task_(*task), asked_(*asked), journal_(*journal) {}

  absl::StatusOr<std::vector<ItemResult>> Score(const v1::OptimizationOptions& options,
                                                absl::Span<const size_t> questions) override;

 private:
  const Task& task_;
  CalibrationScorer& asked_;
  const AnswerJournal& journal_;
};

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_ANSWER_JOURNAL_H_
