// xgrammar (Dong et al., "XGrammar: Flexible and Efficient Structured Generation Engine for Large Language Models",
// arXiv 2411.15100) turns a form into a pushdown automaton over bytes. For each of its states it finds, once, which
// tokens of the vocabulary can come next whatever the stack, and which depend on it; so the tokens of a step are a copy
// of a row of bits and a walk over the few that depend. It throws, and tells what it passes over on standard error:
// both end here.
#include "server/grammar/form_engine.h"

#include <dlpack/dlpack.h>
#include <time.h>
#include <xgrammar/xgrammar.h>

#include <algorithm>
#include <exception>
#include <iostream>
#include <optional>
#include <sstream>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "index/base/status_macros.h"
#include "server/grammar/form_check.h"

namespace c3po {
namespace {

// White space between the tokens of JSON, each time; a model that writes nothing else must not fill its answer with it.
constexpr int kWhiteSpaceMax = 32;

// Of processor time for the tokens of one answer: what the first ones may take together, and each further one on
// average.
constexpr double kMatchSecondsMax = 0.5;
constexpr double kMatchSecondsPerToken = 0.002;

double ThreadSeconds() {
  struct timespec now = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// What an exception of xgrammar's says, without its time, file and line: "[12:00:00] /path/a.cc:12: WHAT\n".
std::string Reason(absl::string_view message) {
  const size_t bracket = message.find("] ");
  if (bracket != absl::string_view::npos && message.substr(0, 1) == "[") {
    const size_t colon = message.find(": ", bracket);
    if (colon != absl::string_view::npos) message.remove_prefix(colon + 2);
  }
  message = message.substr(0, message.find('\n'));  // The first of several warnings.
  absl::ConsumePrefix(&message, "Warning: ");
  constexpr size_t kReasonBytesMax = 512;
  return std::string(message.substr(0, kReasonBytesMax));
}

// What is written to standard error while it lives, in place of it.
class CapturedErrors {
 public:
  CapturedErrors() : before_(std::cerr.rdbuf(text_.rdbuf())) {}
  ~CapturedErrors() { std::cerr.rdbuf(before_); }
  CapturedErrors(const CapturedErrors&) = delete;
  CapturedErrors& operator=(const CapturedErrors&) = delete;
  std::string text() const { return text_.str(); }

 private:
  std::ostringstream text_;
  std::streambuf* const before_;
};

// What `work` returns; an exception, or a warning, is InvalidArgument naming `field`.
template <typename Result, typename Work>
absl::StatusOr<Result> Guarded(const std::string& field, const Work& work) {
  const auto refuse = [&field](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(field, ": ", Reason(what)));
  };
  try {
    const CapturedErrors errors;
    Result result = work();
    if (const std::string said = errors.text(); !said.empty()) return refuse(said);
    return result;
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(absl::StrCat(field, ": takes too much memory"));
  } catch (const std::exception& error) {
    return refuse(error.what());
  }
}

std::string Quoted(absl::string_view text) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string quoted = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      absl::StrAppend(&quoted, "\\u00", std::string(1, kDigits[byte >> 4]), std::string(1, kDigits[byte & 15]));
    } else {
      if (c == '"' || c == '\\') quoted.push_back('\\');
      quoted.push_back(c);
    }
  }
  return quoted + "\"";
}

std::string AlternativesOf(absl::Span<const std::string> texts) {
  std::string rule = "root ::= ";
  for (size_t i = 0; i < texts.size(); ++i) absl::StrAppend(&rule, i == 0 ? "" : " | ", Quoted(texts[i]));
  return rule;
}

xgrammar::Grammar GrammarOf(const AnswerForm& form) {
  const auto of_schema = [](const std::string& schema, bool strict) {
    return xgrammar::Grammar::FromJSONSchema(schema, /*any_whitespace=*/true, std::nullopt, std::nullopt, strict,
                                             kWhiteSpaceMax);
  };
  switch (form.kind) {
    case AnswerForm::Kind::kJsonObject:
      return of_schema(R"({"type": "object"})", /*strict=*/false);
    case AnswerForm::Kind::kJsonSchema:
      return of_schema(form.text, /*strict=*/true);
    case AnswerForm::Kind::kRegex:
      return xgrammar::Grammar::FromRegex(form.text);
    case AnswerForm::Kind::kGrammar:
      return xgrammar::Grammar::FromEBNF(form.text);
    case AnswerForm::Kind::kOneOf:
      break;
  }
  return xgrammar::Grammar::FromEBNF(AlternativesOf(form.texts));
}

// Bits by id.
std::vector<uint32_t> BitsOf(size_t vocabulary) { return std::vector<uint32_t>((vocabulary + 31) / 32); }

void Set(int32_t id, std::vector<uint32_t>& bits) { bits[static_cast<size_t>(id) / 32] |= 1U << (id % 32); }
bool IsSet(int32_t id, const std::vector<uint32_t>& bits) {
  return (bits[static_cast<size_t>(id) / 32] >> (id % 32) & 1U) != 0;
}

struct Ids {
  std::vector<uint32_t> ordinary;  // Tokens that an answer may have.
  std::vector<uint32_t> ends;
  // Of the ordinary ones: those that end with a surrogate's first byte, and those that begin with its second.
  std::vector<uint32_t> opens_surrogate, ends_surrogate;
};

// Surrogates are no characters, and no UTF-8: xgrammar's ranges have them, and a text would show three U+FFFD for one.
bool OpensSurrogate(absl::string_view token) { return token.back() == '\xED'; }
bool EndsSurrogate(char byte) {
  return static_cast<unsigned char>(byte) >= 0xA0 && static_cast<unsigned char>(byte) < 0xC0;
}
bool HasSurrogate(absl::string_view token) {
  for (size_t i = 1; i < token.size(); ++i) {
    if (token[i - 1] == '\xED' && EndsSurrogate(token[i])) return true;
  }
  return false;
}

// JSON has no control characters but line ends and tabs between its tokens. xgrammar lets them into strings of a given
// length, and the tab into any, so that JSON does without them.
bool IsOfJson(absl::string_view token) {
  return std::none_of(token.begin(), token.end(),
                      [](char c) { return static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\r'; });
}

bool WritesJson(AnswerForm::Kind kind) {
  return kind == AnswerForm::Kind::kJsonObject || kind == AnswerForm::Kind::kJsonSchema;
}

class Matcher final : public TokenMatcher {
 public:
  Matcher(const xgrammar::CompiledGrammar& grammar, std::shared_ptr<const Ids> ids, bool may_end)
      : matcher_(grammar), ids_(std::move(ids)), may_end_(may_end), bits_(ids_->ordinary.size()) {}

  absl::StatusOr<absl::Span<const uint32_t>> NextTokens() override {
    if (!filled_) Measured([this] { Fill(); });
    filled_ = true;
    C3PO_RETURN_IF_ERROR(status_);
    if (!goes_on_ && !(may_end_ && complete_)) {
      return absl::InvalidArgumentError(
          "structured_output: the answer begins a text of this form that no token of the model's vocabulary goes on");
    }
    return absl::Span<const uint32_t>(bits_);
  }

  absl::Status Accept(int32_t token) override {
    Measured([this, token] {
      if (!matcher_.AcceptToken(token)) {
        status_ =
            absl::InternalError(absl::StrCat("structured_output: token ", token, " does not go on with the form"));
      }
    });
    ++accepted_;
    in_surrogate_ = IsSet(token, ids_->opens_surrogate);
    filled_ = false;
    return status_;
  }

  absl::StatusOr<bool> IsAtEnd() override {
    if (!matcher_.IsCompleted()) return false;
    const absl::StatusOr<absl::Span<const uint32_t>> next = NextTokens();
    if (!status_.ok()) return next.status();
    return !goes_on_;
  }

 private:
  // An exception of xgrammar's, or too much time, ends the answer.
  template <typename Work>
  void Measured(const Work& work) {
    if (!status_.ok()) return;
    const double start = ThreadSeconds();
    try {
      work();
    } catch (const std::bad_alloc&) {
      status_ = absl::ResourceExhaustedError("structured_output: the form takes too much memory");
    } catch (const std::exception& error) {
      status_ = absl::InternalError(absl::StrCat("structured_output: ", Reason(error.what())));
    }
    seconds_ += ThreadSeconds() - start;
    if (status_.ok() && seconds_ > kMatchSecondsMax + kMatchSecondsPerToken * accepted_) {
      status_ = absl::ResourceExhaustedError(
          absl::StrCat("structured_output: this form takes too much time for each token: ", seconds_, " s for ",
                       accepted_, " tokens; make it smaller or less ambiguous"));
    }
  }

  void Fill() {
    int64_t shape = static_cast<int64_t>(bits_.size());
    DLTensor tensor{bits_.data(), {kDLCPU, 0}, 1, {kDLInt, 32, 1}, &shape, nullptr, 0};
    matcher_.FillNextTokenBitmask(&tensor);
    complete_ = matcher_.IsCompleted();
    goes_on_ = false;
    for (size_t w = 0; w < bits_.size(); ++w) {
      bits_[w] &= ids_->ordinary[w];  // Whatever a grammar names, no special token.
      if (in_surrogate_) bits_[w] &= ~ids_->ends_surrogate[w];
      goes_on_ = goes_on_ || bits_[w] != 0;
      if (may_end_ && complete_) bits_[w] |= ids_->ends[w];
    }
  }

  xgrammar::GrammarMatcher matcher_;
  const std::shared_ptr<const Ids> ids_;
  const bool may_end_;
  std::vector<uint32_t> bits_;
  bool filled_ = false, complete_ = false, goes_on_ = false;
  bool in_surrogate_ = false;  // The last token left its first byte.
  double seconds_ = 0;
  int accepted_ = 0;
  absl::Status status_;
};

class Form final : public CompiledForm {
 public:
  const xgrammar::CompiledGrammar& grammar() const { return grammar_; }
  Form(xgrammar::CompiledGrammar grammar, std::shared_ptr<const Ids> ids)
      : grammar_(std::move(grammar)), ids_(std::move(ids)), bytes_(static_cast<int64_t>(grammar_.MemorySizeBytes())) {}

  std::unique_ptr<TokenMatcher> NewMatcher(bool may_end) const override {
    return std::make_unique<Matcher>(grammar_, ids_, may_end);
  }
  int64_t bytes() const override { return bytes_; }

 private:
  const xgrammar::CompiledGrammar grammar_;
  const std::shared_ptr<const Ids> ids_;
  const int64_t bytes_;
};

}  // namespace

struct FormEngine::Impl {
  Impl(const xgrammar::TokenizerInfo& vocabulary, std::shared_ptr<const Ids> all, std::shared_ptr<const Ids> of_json)
      : info(vocabulary),
        compiler(vocabulary, /*max_threads=*/1, /*cache_enabled=*/false),
        ids(std::move(all)),
        json_ids(std::move(of_json)) {}
  absl::StatusOr<std::shared_ptr<const Form>> Compile(const AnswerForm& form);
  const xgrammar::TokenizerInfo info;
  xgrammar::GrammarCompiler compiler;
  const std::shared_ptr<const Ids>& IdsOf(AnswerForm::Kind kind) const { return WritesJson(kind) ? json_ids : ids; }
  const std::shared_ptr<const Ids> ids, json_ids;
};

FormEngine::FormEngine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

FormEngine::~FormEngine() = default;

absl::StatusOr<std::unique_ptr<FormEngine>> FormEngine::Create(const FormVocabulary& vocabulary) {
  const size_t size = vocabulary.tokens.size();
  const auto ids = std::make_shared<Ids>(Ids{BitsOf(size), BitsOf(size), BitsOf(size), BitsOf(size)});
  const auto json_ids = std::make_shared<Ids>(*ids);
  bool any = false;
  for (size_t id = 0; id < size; ++id) {
    const std::string& token = vocabulary.tokens[id];
    if (token.empty()) continue;
    any = true;
    if (HasSurrogate(token)) continue;
    Set(static_cast<int32_t>(id), ids->ordinary);
    if (IsOfJson(token)) Set(static_cast<int32_t>(id), json_ids->ordinary);
    if (OpensSurrogate(token)) Set(static_cast<int32_t>(id), ids->opens_surrogate);
    if (EndsSurrogate(token.front())) Set(static_cast<int32_t>(id), ids->ends_surrogate);
  }
  if (!any) return absl::InvalidArgumentError("structured_output: the model's vocabulary has no tokens");
  for (const int32_t id : vocabulary.end_tokens) Set(id, ids->ends);
  json_ids->ends = ids->ends;
  json_ids->opens_surrogate = ids->opens_surrogate;
  json_ids->ends_surrogate = ids->ends_surrogate;
  try {
    const xgrammar::TokenizerInfo info(vocabulary.tokens, xgrammar::VocabType::RAW, static_cast<int>(size),
                                       vocabulary.end_tokens);
    return std::unique_ptr<FormEngine>(new FormEngine(std::make_unique<Impl>(info, ids, json_ids)));
  } catch (const std::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("structured_output: ", Reason(error.what())));
  }
}

absl::StatusOr<std::shared_ptr<const Form>> FormEngine::Impl::Compile(const AnswerForm& form) {
  const std::string field = FieldOf(form);
  using FormPtr = std::shared_ptr<const Form>;
  C3PO_ASSIGN_OR_RETURN(FormPtr compiled, Guarded<FormPtr>(field, [&] {
                          return std::make_shared<const Form>(compiler.CompileGrammar(GrammarOf(form)),
                                                              IdsOf(form.kind));
                        }));
  const std::unique_ptr<TokenMatcher> first = compiled->NewMatcher(/*may_end=*/false);
  const absl::StatusOr<bool> empty = first->IsAtEnd();
  if (empty.ok() && *empty)
    return absl::InvalidArgumentError(absl::StrCat(field, ": only the empty text has this form"));
  const absl::Status begins = first->NextTokens().status();
  if (absl::IsInvalidArgument(begins)) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ": no token of the model's vocabulary begins a text of this form"));
  }
  C3PO_RETURN_IF_ERROR(begins);
  return compiled;
}

absl::StatusOr<std::shared_ptr<const CompiledForm>> FormEngine::Compile(const AnswerForm& form) {
  return impl_->Compile(form);
}

absl::StatusOr<std::string> FormEngine::CompileToBytes(const AnswerForm& form) {
  C3PO_ASSIGN_OR_RETURN(const std::shared_ptr<const Form> compiled, impl_->Compile(form));
  return Guarded<std::string>(FieldOf(form), [&] { return compiled->grammar().SerializeJSON(); });
}

absl::StatusOr<std::shared_ptr<const CompiledForm>> FormEngine::FromBytes(const std::string& bytes,
                                                                          AnswerForm::Kind kind) const {
  try {
    auto grammar = xgrammar::CompiledGrammar::DeserializeJSON(bytes, impl_->info);
    if (auto* const compiled = std::get_if<xgrammar::CompiledGrammar>(&grammar)) {
      return std::make_shared<const Form>(std::move(*compiled), impl_->IdsOf(kind));
    }
    return absl::InternalError("structured_output: a compiled form cannot be read");
  } catch (const std::exception& error) {
    return absl::InternalError(
        absl::StrCat("structured_output: a compiled form cannot be read: ", Reason(error.what())));
  }
}

}  // namespace c3po
