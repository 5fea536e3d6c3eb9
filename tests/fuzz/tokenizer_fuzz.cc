// tokenizer.json, and behind a line "==" a text that it shall encode: refused, or what it encodes decodes to valid
// UTF-8, token by token as at once.

#include <utility>

#include "absl/strings/str_split.h"
#include "index/base/utf8.h"
#include "server/text/tokenizer.h"
#include "tests/fuzz/fuzz_target.h"

C3PO_FUZZ_TARGET(input) {
  const std::pair<absl::string_view, absl::string_view> parts = absl::StrSplit(input, absl::MaxSplits("\n==\n", 1));
  const c3po::MemoryFile memory(parts.first);
  const auto tokenizer = c3po::Tokenizer::Load(memory.path());
  if (!tokenizer.ok()) {
    C3PO_FUZZ_CHECK(!tokenizer.status().message().empty());
    return;
  }
  for (const absl::string_view text :
       {parts.second, absl::string_view("The caf\xc3\xa9 \xe2\x80\x94 42\n\t\xf0\x9f\x98\x80 x")}) {
    const auto ids = (*tokenizer)->Encode(text, /*add_special_tokens=*/true);
    if (!ids.ok()) continue;
    C3PO_FUZZ_CHECK(c3po::IsValidUtf8(text));
    for (const bool skip_special : {false, true}) {
      const std::string whole = (*tokenizer)->Decode(*ids, skip_special);
      C3PO_FUZZ_CHECK(c3po::IsValidUtf8(whole));
      auto stream = (*tokenizer)->StartDecoding(skip_special);
      std::string joined;
      for (const int32_t id : *ids) {
        C3PO_FUZZ_CHECK(id >= 0 && id < (*tokenizer)->vocabulary_size());
        joined += stream.Append(id);
        C3PO_FUZZ_CHECK(c3po::IsValidUtf8(joined));
      }
      C3PO_FUZZ_CHECK(joined + stream.Finish() == whole);
    }
  }
}
