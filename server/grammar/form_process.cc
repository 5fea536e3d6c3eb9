#include "server/grammar/form_process.h"

#include <unistd.h>

#include <array>
#include <cerrno>
#include <memory>
#include <new>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/grammar/byte_fields.h"
#include "server/grammar/form_engine.h"
#include "server/grammar/form_vocabulary.h"

namespace c3po {
namespace {

constexpr size_t kLengthBytes = 4;

// False: the pipe ended before.
bool ReadAll(size_t bytes, std::string& out) {
  out.clear();
  std::array<char, 1 << 16> part;
  while (out.size() < bytes) {
    const ssize_t taken = read(STDIN_FILENO, part.data(), std::min(part.size(), bytes - out.size()));
    if (taken > 0) out.append(part.data(), static_cast<size_t>(taken));
    if (taken == 0 || (taken < 0 && errno != EINTR)) return false;
  }
  return true;
}

bool ReadMessage(std::string& body) {
  if (!ReadAll(kLengthBytes, body)) return false;
  absl::string_view head = body;
  return ReadAll(*TakeNumber(head), body);
}

bool WriteReply(FormReply::Kind kind, absl::string_view text) {
  std::string message;
  AppendText(absl::StrCat(std::string(1, static_cast<char>(kind)), text), message);
  for (absl::string_view rest = message; !rest.empty();) {
    const ssize_t written = write(STDOUT_FILENO, rest.data(), rest.size());
    if (written > 0) rest.remove_prefix(static_cast<size_t>(written));
    if (written < 0 && errno != EINTR) return false;
  }
  return true;
}

// False: nobody reads.
bool Answer(FormEngine& engine, const std::string& body) {
  try {
    const absl::StatusOr<AnswerForm> form = FormFromBytes(body);
    if (!form.ok()) return WriteReply(FormReply::Kind::kRefused, form.status().message());
    const absl::StatusOr<std::string> compiled = engine.CompileToBytes(*form);
    if (compiled.ok()) return WriteReply(FormReply::Kind::kCompiled, *compiled);
    if (!absl::IsResourceExhausted(compiled.status())) {
      return WriteReply(FormReply::Kind::kRefused, compiled.status().message());
    }
  } catch (const std::bad_alloc&) {  // Beside what the engine catches.
  }
  return WriteReply(FormReply::Kind::kNoMemory, "");
}

}  // namespace

std::string BytesOf(const AnswerForm& form) {
  std::string bytes;
  AppendNumber(static_cast<uint32_t>(form.kind), bytes);
  AppendText(form.text, bytes);
  AppendNumber(static_cast<uint32_t>(form.texts.size()), bytes);
  for (const std::string& text : form.texts) AppendText(text, bytes);
  return bytes;
}

absl::StatusOr<AnswerForm> FormFromBytes(absl::string_view bytes) {
  const absl::Status malformed = absl::InvalidArgumentError("form: malformed bytes");
  const std::optional<uint32_t> kind = TakeNumber(bytes);
  std::optional<std::string> text = TakeText(bytes);
  const std::optional<uint32_t> count = TakeNumber(bytes);
  if (!kind || *kind > static_cast<uint32_t>(AnswerForm::Kind::kOneOf) || !text || !count) return malformed;
  AnswerForm form{static_cast<AnswerForm::Kind>(*kind), *std::move(text), {}};
  for (uint32_t i = 0; i < *count; ++i) {
    std::optional<std::string> one = TakeText(bytes);
    if (!one) return malformed;
    form.texts.push_back(*std::move(one));
  }
  if (!bytes.empty()) return malformed;
  return form;
}

absl::StatusOr<FormReply> ParseFormReply(absl::string_view body) {
  for (const auto kind : {FormReply::Kind::kCompiled, FormReply::Kind::kRefused, FormReply::Kind::kNoMemory}) {
    if (body.empty() || body.front() != static_cast<char>(kind)) continue;
    return FormReply{kind, std::string(body.substr(1))};
  }
  return absl::InvalidArgumentError("reply: malformed bytes");
}

int RunFormProcess() {
  std::string body;
  if (!ReadMessage(body)) return 1;
  const absl::StatusOr<FormVocabulary> vocabulary = VocabularyFromBytes(body);
  if (!vocabulary.ok()) return 1;
  const absl::StatusOr<std::unique_ptr<FormEngine>> engine = FormEngine::Create(*vocabulary);
  if (!engine.ok()) return WriteReply(FormReply::Kind::kRefused, engine.status().message()) ? 0 : 1;
  if (!WriteReply(FormReply::Kind::kCompiled, "")) return 1;
  while (ReadMessage(body)) {
    if (!Answer(**engine, body)) return 1;
  }
  return 0;
}

}  // namespace c3po
