#ifndef C3PO_CLIENT_LOAD_PROMPT_SOURCE_H_
#define C3PO_CLIENT_LOAD_PROMPT_SOURCE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "c3po/v1/generation.pb.h"
#include "client/c3po_client.h"
#include "client/load/load_plan.h"

namespace c3po {

// Where the calls of a load take their prompts from. Immutable and thread-safe.
class PromptSource {
 public:
  // Lines of {"prompt": text, optional "max_tokens": number}, other keys ignored; each call takes one, evenly at
  // random. NotFound; InvalidArgument as "FILE:17: why", or when there is none.
  static absl::StatusOr<PromptSource> FromFile(const std::string& path);

  // Runs of token ids out of one long text of random English words, which the server tokenizes once: a prompt has
  // exactly the tokens that the plan says, and two prompts hardly ever begin alike, so that no cache of beginnings
  // answers for the model. `tokens_max`: of the longest prompt.
  static absl::StatusOr<PromptSource> FromWords(Client& client, uint64_t seed, uint32_t tokens_max,
                                                const CallOptions& options);

  // Sets the input and max_tokens.
  void Fill(const PlannedCall& call, v1::GenerateRequest* request) const;

 private:
  struct Line {
    std::string prompt;
    uint32_t max_tokens = 0;  // 0: as planned.
  };
  PromptSource() = default;

  std::vector<Line> lines_;  // or
  std::vector<uint32_t> token_ids_;
};

}  // namespace c3po

#endif  // C3PO_CLIENT_LOAD_PROMPT_SOURCE_H_
