#include "client/load/prompt_source.h"

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "client/eval/sample_line.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr uint32_t kStartsMin = 4096;  // Places in the text where a prompt can begin.
constexpr size_t kTextBytesMax = 2 << 20;

constexpr const char* kWords[] = {
    "river",  "copper", "seven",   "under",  "garden", "moves",   "question", "light", "winter", "answer", "stone",
    "paper",  "green",  "harbor",  "counts", "above",  "engine",  "slowly",   "field", "number", "window", "carries",
    "salt",   "island", "between", "letter", "bright", "forest",  "measures", "sound", "market", "early",  "silver",
    "bridge", "keeps",  "water",   "little", "month",  "teacher", "turns",    "deep",  "yellow", "planet", "north",
};

uint32_t RandomBelow(uint32_t bound, std::mt19937_64& random) {
  return static_cast<uint32_t>(DrawUniform(random) * static_cast<double>(bound));
}

}  // namespace

absl::StatusOr<PromptSource> PromptSource::FromFile(const std::string& path) {
  C3PO_ASSIGN_OR_RETURN(const std::vector<NumberedLine> lines, ReadLines(path));
  PromptSource source;
  for (const NumberedLine& numbered : lines) {
    const auto malformed = [&](absl::string_view why) {
      return absl::InvalidArgumentError(absl::StrCat(path, ":", numbered.number, ": ", why));
    };
    const nlohmann::json json = nlohmann::json::parse(numbered.text, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object()) return malformed("not a JSON object");
    const auto prompt = json.find("prompt");
    if (prompt == json.end() || !prompt->is_string()) return malformed("\"prompt\" is missing or not a text");
    Line line;
    line.prompt = prompt->get<std::string>();
    const auto max_tokens = json.find("max_tokens");
    if (max_tokens != json.end()) {
      if (!max_tokens->is_number_unsigned() || *max_tokens < 1U || *max_tokens > uint32_t{1} << 24) {
        return malformed("\"max_tokens\" is not a number of at least 1");
      }
      line.max_tokens = max_tokens->get<uint32_t>();
    }
    source.lines_.push_back(std::move(line));
  }
  if (source.lines_.empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": holds no prompts"));
  return source;
}

absl::StatusOr<PromptSource> PromptSource::FromWords(Client& client, uint64_t seed, uint32_t tokens_max,
                                                     const CallOptions& options) {
  const size_t needed = size_t{tokens_max} + kStartsMin;
  std::mt19937_64 random(seed);
  PromptSource source;
  // In pieces of a size that any server takes in one message and any tokenizer in one go.
  while (source.token_ids_.size() < needed) {
    v1::TokenizeRequest request;
    request.set_add_special_tokens(false);
    std::string& text = *request.mutable_text();
    while (text.size() < std::min(needed * 8, kTextBytesMax / 16)) {
      absl::StrAppend(&text, " ", kWords[RandomBelow(std::size(kWords), random)]);
    }
    C3PO_ASSIGN_OR_RETURN(const v1::TokenizeResponse response, client.Tokenize(request, options));
    if (response.ids().empty()) return absl::InternalError("the server found no tokens in a text of words");
    source.token_ids_.insert(source.token_ids_.end(), response.ids().begin(), response.ids().end());
  }
  return source;
}

void PromptSource::Fill(const PlannedCall& call, v1::GenerateRequest* request) const {
  uint32_t max_tokens = call.output_tokens;
  if (lines_.empty()) {
    const size_t length = std::min<size_t>(call.prompt_tokens, token_ids_.size());
    const auto begin = token_ids_.begin() + static_cast<ptrdiff_t>(call.prompt_draw % (token_ids_.size() - length + 1));
    request->mutable_token_ids()->mutable_ids()->Assign(begin, begin + static_cast<ptrdiff_t>(length));
  } else {
    const Line& line = lines_[call.prompt_draw % lines_.size()];
    request->set_prompt(line.prompt);
    if (line.max_tokens > 0) max_tokens = line.max_tokens;
  }
  request->mutable_sampling()->set_max_tokens(max_tokens);
}

}  // namespace c3po
