#ifndef C3PO_SERVER_TYPES_ANSWER_FORM_H_
#define C3PO_SERVER_TYPES_ANSWER_FORM_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace c3po {

// The form that an answer's text has to have, as a client gives it.
struct AnswerForm {
  enum class Kind {
    kJsonObject,  // Any JSON object; no text.
    kJsonSchema,  // A JSON schema, as JSON.
    kRegex,       // The whole answer matches it.
    kGrammar,     // EBNF in the notation of GBNF, with a rule `root`.
    kOneOf,       // One of `texts`.
  };
  Kind kind = Kind::kJsonObject;
  std::string text;                // Of kJsonSchema, kRegex and kGrammar.
  std::vector<std::string> texts;  // Of kOneOf: at least one, none empty.

  bool operator==(const AnswerForm& other) const {
    return kind == other.kind && text == other.text && texts == other.texts;
  }
};

// One answer's way through its form. Of one thread at a time.
class TokenMatcher {
 public:
  virtual ~TokenMatcher() = default;

  // The tokens that may come next: token t is bit t % 32 of word t / 32, of as many words as the vocabulary takes.
  // These are all tokens after which some text of the form is left, byte by byte; no special token; and the model's end
  // tokens where the text so far is of the form. At least one bit is set. Found when first asked for after an Accept,
  // some microseconds to milliseconds, and kept until the next one. InvalidArgument "structured_output: ...": no token
  // of the vocabulary goes on. ResourceExhausted, likewise: the form takes more time for a token than a server can
  // give.
  virtual absl::StatusOr<absl::Span<const uint32_t>> NextTokens() = 0;

  // The answer goes on with `token`, one of NextTokens and no end token. Errors as NextTokens; Internal: it is none of
  // them.
  virtual absl::Status Accept(int32_t token) = 0;

  // The text so far is of the form, and no longer one that begins with it is. Errors as NextTokens.
  virtual absl::StatusOr<bool> IsAtEnd() = 0;
};

// An AnswerForm as automata over a tokenizer's vocabulary. Immutable and thread-safe.
class CompiledForm {
 public:
  virtual ~CompiledForm() = default;
  // At the beginning of an answer. may_end: end tokens are among NextTokens where the form allows the end; false: only
  // what goes on is, and the answer ends where nothing does.
  virtual std::unique_ptr<TokenMatcher> NewMatcher(bool may_end) const = 0;
  // An estimate of what it holds.
  virtual int64_t bytes() const = 0;
};

}  // namespace c3po

#endif  // C3PO_SERVER_TYPES_ANSWER_FORM_H_
