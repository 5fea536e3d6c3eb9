#ifndef C3PO_SERVER_GRAMMAR_FORM_ENGINE_H_
#define C3PO_SERVER_GRAMMAR_FORM_ENGINE_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/grammar/form_vocabulary.h"
#include "server/types/answer_form.h"

namespace c3po {

// The one door to xgrammar: forms of a vocabulary, compiled in this thread, however long and however much memory that
// takes. FormCompiler bounds both.
class FormEngine {
 public:
  // InvalidArgument: a vocabulary without tokens. Takes some 100 ms for 50,000 tokens.
  static absl::StatusOr<std::unique_ptr<FormEngine>> Create(const FormVocabulary& vocabulary);
  ~FormEngine();

  // `form`: one that CheckForm lets pass. InvalidArgument "structured_output.FIELD: ...": malformed; has what the
  // matcher would pass over; no text has the form, or only the empty one; or no token of the vocabulary begins such a
  // text. One thread at a time, and of this process's threads no other writes to std::cerr, which xgrammar's warnings
  // are read of.
  absl::StatusOr<std::shared_ptr<const CompiledForm>> Compile(const AnswerForm& form);

  // A compiled form as bytes for another process with the same vocabulary, and back, of the same kind, which takes as
  // long as they are. What comes from elsewhere than CompileToBytes is not safe to use. Errors as Compile; Internal: no
  // such bytes.
  absl::StatusOr<std::string> CompileToBytes(const AnswerForm& form);
  absl::StatusOr<std::shared_ptr<const CompiledForm>> FromBytes(const std::string& bytes, AnswerForm::Kind kind) const;

 private:
  struct Impl;
  explicit FormEngine(std::unique_ptr<Impl> impl);
  const std::unique_ptr<Impl> impl_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_GRAMMAR_FORM_ENGINE_H_
