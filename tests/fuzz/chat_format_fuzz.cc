// A chat template, and a tokenizer_config.json that holds one: refused, or conversations can be rendered.

#include "server/text/chat_format.h"
#include "server/text/chat_template.h"
#include "tests/fuzz/fuzz_target.h"

C3PO_FUZZ_TARGET(input) {
  if (const auto parsed = c3po::ChatTemplate::Parse(input); !parsed.ok()) {
    C3PO_FUZZ_CHECK(parsed.status().code() == absl::StatusCode::kInvalidArgument);
  }
  const c3po::MemoryFile memory(input);
  const auto format = c3po::ChatFormat::FromTokenizerConfig(memory.path());
  if (!format.ok()) return;
  const c3po::ChatTurn system{"system", "Be brief."}, user{"user", "2 + 2?\n"}, assistant{"assistant", "<think>4"};
  for (const std::vector<c3po::ChatTurn>& turns :
       {std::vector<c3po::ChatTurn>{user}, {system, user}, {system, user, assistant, user}, {assistant}, {}}) {
    const auto prompt = format->Render(turns, absl::UnixEpoch());
    C3PO_FUZZ_CHECK(!prompt.ok() || !turns.empty());
  }
}
