// Bodies of OpenAI's HTTP requests, from bytes to the pipeline's values. The first byte chooses the path: 't' a text
// completion, 'c' a chat, 'e' embeddings. The slices of any text at all lie within it.

#include <string>
#include <variant>

#include "server/rpc/doors/http/completion_request.h"
#include "server/rpc/doors/http/embedding_request.h"
#include "server/rpc/doors/http/json_slices.h"
#include "server/sampling/sampler.h"
#include "tests/fuzz/fuzz_target.h"

namespace c3po {
namespace {

bool IsWithin(absl::string_view part, absl::string_view whole) {
  return part.empty() || (part.data() >= whole.data() && part.data() + part.size() <= whole.data() + whole.size());
}

void UseSlices(absl::string_view text) {
  VisitMembers(text, [&](absl::string_view key, absl::string_view value) {
    C3PO_FUZZ_CHECK(IsWithin(key, text) && IsWithin(value, text));
    return true;
  });
  VisitElements(text, [&](absl::string_view value) {
    C3PO_FUZZ_CHECK(IsWithin(value, text));
    return true;
  });
}

void UseCompletion(const absl::StatusOr<CompletionRequest>& request) {
  if (!request.ok()) {
    C3PO_FUZZ_CHECK(absl::IsInvalidArgument(request.status()) || absl::IsNotFound(request.status()));
    return;
  }
  C3PO_FUZZ_CHECK(!request->prompts.empty() && request->prompts.size() <= 4);
  ValidateSamplingParams(request->sampling).IgnoreError();
  for (const PromptInput& prompt : request->prompts) {
    const auto* const chat = std::get_if<Conversation>(&prompt);
    C3PO_FUZZ_CHECK((chat != nullptr) == request->chat);
    if (chat == nullptr || !CheckConversation(*chat).ok()) continue;
    // What goes to the renderer is whole, whatever the parts were.
    C3PO_FUZZ_CHECK(JsonFields::Parse(RenderRequest(*chat, "default", absl::UnixEpoch()), "x.").ok());
  }
}

void Use(absl::string_view input) {
  if (input.empty()) return;
  static constexpr int32_t kEndTokens[] = {2};
  const ServedModel served{"tiny", 512, kEndTokens, 7, 4};
  const absl::string_view body = input.substr(1);
  UseSlices(body);
  switch (input[0]) {
    case 't':
      return UseCompletion(ReadTextRequest(body, served));
    case 'c':
      return UseCompletion(ReadChatRequest(body, served));
    case 'e':
      ReadEmbeddingRequest(body, "tiny", "mini", 3).IgnoreError();
      return;
    default:
      return;
  }
}

}  // namespace
}  // namespace c3po

C3PO_FUZZ_TARGET(input) { c3po::Use(input); }
