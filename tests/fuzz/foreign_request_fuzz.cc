// Requests of the protocols that others define, from bytes to the pipeline's values. The first byte chooses the
// message.

#include "server/rpc/doors/kserve_request.h"
#include "server/rpc/doors/vllm_request.h"
#include "server/sampling/sampler.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/fuzz/wire_message.h"

namespace c3po {
namespace {

// The text that was taken is written as an answer in the tensor that it came in, byte for byte.
void UseKserve(const inference::ModelInferRequest& request) {
  const auto question = QuestionFromKserve(request, "m", SamplingParams(), /*drawn_seed=*/7);
  if (!question.ok()) return;
  ValidateSamplingParams(question->call.sampling).IgnoreError();
  const std::string& text = std::get<std::string>(question->call.input);
  const inference::ModelInferResponse answer = TextToKserve(request, text);
  if (request.raw_input_contents_size() == 1) {
    C3PO_FUZZ_CHECK(answer.raw_output_contents(0) == request.raw_input_contents(0));
  } else {
    C3PO_FUZZ_CHECK(answer.outputs(0).contents().bytes_contents(0) == request.inputs(0).contents().bytes_contents(0));
  }
}

// Ids that were taken are those of the request, and none is negative.
void UseVllm(const vllm_engine::GenerateRequest& request) {
  static constexpr int32_t kEnds[] = {2, 5};
  VllmContext context;
  context.context_window = 128;
  context.end_tokens = kEnds;
  const auto call = GenerateFromVllm(request, context);
  if (!call.ok()) return;
  ValidateSamplingParams(call->sampling).IgnoreError();
  if (const auto* ids = std::get_if<std::vector<int32_t>>(&call->input)) {
    C3PO_FUZZ_CHECK(ids->size() == static_cast<size_t>(request.tokenized().input_ids_size()));
    for (const int32_t id : *ids) C3PO_FUZZ_CHECK(id >= 0);
  }
}

void UseRequest(absl::string_view input) {
  if (input.empty()) return;
  const absl::string_view rest = input.substr(1);
  if (input[0] == 'k') {
    if (const auto request = ReadMessage<inference::ModelInferRequest>(rest); request.ok()) UseKserve(*request);
  } else if (input[0] == 'v') {
    if (const auto request = ReadMessage<vllm_engine::GenerateRequest>(rest); request.ok()) UseVllm(*request);
  } else if (input[0] == 'e') {
    if (const auto request = ReadMessage<vllm_engine::EmbedRequest>(rest); request.ok())
      IdsFromVllm(*request).IgnoreError();
  }
}

}  // namespace
}  // namespace c3po

C3PO_FUZZ_TARGET(input) { c3po::UseRequest(input); }
