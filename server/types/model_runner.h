#ifndef C3PO_SERVER_TYPES_MODEL_RUNNER_H_
#define C3PO_SERVER_TYPES_MODEL_RUNNER_H_

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "index/types/pathway.h"
#include "server/types/kv_blocks.h"
#include "server/types/neighborhood_objective.h"
#include "server/types/piecewise_work.h"
#include "server/types/readout.h"
#include "server/types/routed_experts.h"
#include "server/types/routing_override.h"

namespace c3po {

// What the rest of the server needs to know about a loaded model.
struct ModelShape {
  std::string name;
  std::string architecture;
  std::string digest;      // sha256 over configuration and weights, and how these were quantized at load
  std::string dtype;       // "float32" or "bfloat16"
  std::string arithmetic;  // of products, likewise; with quantized weights what activations are rounded to: int16, int8
  std::string weights;     // how the large matrices are held: as `dtype`, or "int8" or "int4"; `dtype` is the others'
  std::string kv_cache_dtype;  // of keys and values, the cache's and references', likewise
  std::string device;          // "cpu" or "cuda"
  int layers = 0;
  int moe_layers = 0;  // routers, numbered 0..moe_layers-1 from the bottom
  int experts = 0;     // routed experts per MoE layer
  int experts_per_token = 0;
  int experts_per_token_max = 0;  // that a request may ask for; 0: as many as the model has
  int hidden_size = 0;
  int vocabulary_size = 0;
  int context_window = 0;
  int64_t parameters = 0;
  bool batch_invariant = false;  // A row's result is bitwise the same whatever other rows are in the pass.
  std::vector<int32_t> eos_token_ids;
};

// What stays where the model computes, for as long as anybody holds it. Opaque; only the model that made it reads it,
// and none outlives it.
class PlacedRouting {  // an override
 public:
  virtual ~PlacedRouting() = default;
};
class EntryState {  // the hidden state of one token, entering a layer
 public:
  virtual ~EntryState() = default;
};
class StateSum {  // of the hidden states of a prompt's tokens so far, entering a layer
 public:
  virtual ~StateSum() = default;
};

// What a forward pass records at a prompt's last token, for C3PO.
struct PromptCapture {
  Pathway pathway;                          // [moe_layers, experts]: softmax of the router's logits
  std::shared_ptr<const EntryState> entry;  // entering `entry_layer`, to resume from
  std::vector<float> mean_hidden;  // [hidden_size] mean over the prompt of the states entering mean_layer, if asked for
  std::vector<float> state;        // [hidden_size] this token's state entering state_layer, if asked for
};

// Consecutive tokens of one sequence in a forward pass. A view: what it points to outlives the pass.
struct Segment {
  // Of positions [0, start + tokens.size()) at least. Those before `start` are read; the tokens' own are written, and
  // no other segment of the batch names these.
  KvBlocks kv;
  int start = 0;                      // position of tokens[0]
  absl::Span<const int32_t> tokens;   // at least one
  absl::Span<const int32_t> targets;  // empty, or one per row: log p(target) after that row is returned

  // Resume: layers below entry_layer are skipped and the single token starts from `entry` (from a capture).
  bool resume = false;
  int entry_layer = 0;
  const EntryState* entry = nullptr;

  // Rows at positions in [override_start, override_end) take `routing`; null: the model's own routers everywhere.
  const PlacedRouting* routing = nullptr;
  int override_start = 0;
  int override_end = std::numeric_limits<int>::max();

  int experts_per_token = 0;  // of all rows, at most ModelShape::experts_per_token_max; 0: the model's own number
  bool want_routes = false;   // SegmentOutput::routes

  ReadoutRequest readout;                         // of the last row
  absl::Span<const ReadoutRequest> row_readouts;  // of the first so many rows, beside the last one's
  bool want_capture = false;                      // at the last row, with entry_layer
  int state_layer = -1;  // of PromptCapture::state: an MoE layer, or after the last one (moe_layers); -1: no
  // The states entering that layer are added to *state_sum, which holds those of the prompt's earlier chunks, or null
  // and then a sum is made; -1: no.
  int mean_layer = -1;
  std::shared_ptr<StateSum>* state_sum = nullptr;
};

// Vectors keep their memory from pass to pass.
struct SegmentOutput {
  Readout readout;                     // what was wanted
  std::vector<Readout> row_readouts;   // one per segment.row_readouts
  std::vector<float> target_logprobs;  // one per target
  bool targets_greedy = true;          // every target is the most likely token (lowest id on ties)
  PromptCapture capture;
  // Where they were wanted, of all rows. Where the segment resumes, the layers below its entry layer say nothing.
  RoutedExperts routes;
};

// A neighbor's fixed states, and whether they were kept by an earlier preparation.
struct PreparedNeighbor {
  std::shared_ptr<const NeighborState> state;
  bool hit = false;
};

// The model as the scheduler and the pipeline see it. All calls come from the engine thread; shape() from any.
class ModelRunner {
 public:
  virtual ~ModelRunner() = default;
  virtual const ModelShape& shape() const = 0;

  // Makes the cache of keys and values, once, before the first Forward. ResourceExhausted when memory is short.
  virtual absl::Status AllocateKvCache(const KvCacheShape& cache) = 0;

  virtual absl::StatusOr<std::shared_ptr<const PlacedRouting>> PlaceRouting(const RoutingOverride& routing) = 0;

  // Runs all segments as one batch; outputs[i], overwritten, is of segment i. After an error they say nothing.
  virtual absl::Status Forward(absl::Span<const Segment> segments, std::vector<SegmentOutput>& outputs) = 0;

  // The neighbor's fixed states for an optimization that moves `moving` of it; from a bounded cache, or computed by one
  // forward pass over its prompt and continuations. InvalidArgument: the neighbor is not one of this model.
  virtual absl::StatusOr<std::unique_ptr<NeighborPreparation>> NewPreparation(const NeighborCase& neighbor,
                                                                              const MovingPart& moving) = 0;
  // Of several, in their order; each is advanced until it is whole, and then the next. A model that can makes those
  // that are not known by one pass over many of them, which reads a weight once: whoever advances the first pays for
  // it.
  virtual absl::StatusOr<std::vector<std::unique_ptr<NeighborPreparation>>> NewPreparations(
      absl::Span<const NeighborCase> neighbors, const MovingPart& moving) {
    std::vector<std::unique_ptr<NeighborPreparation>> preparations;
    for (const NeighborCase& neighbor : neighbors) {
      auto one = NewPreparation(neighbor, moving);
      if (!one.ok()) return one.status();
      preparations.push_back(*std::move(one));
    }
    return preparations;
  }
  // All of it at once.
  absl::StatusOr<PreparedNeighbor> PrepareNeighbor(const NeighborCase& neighbor, const MovingPart& moving) {
    auto preparation = NewPreparation(neighbor, moving);
    if (!preparation.ok()) return preparation.status();
    const absl::StatusOr<bool> done = (*preparation)->Advance(PiecewiseWork::kToTheEnd);
    if (!done.ok()) return done.status();
    return PreparedNeighbor{(*preparation)->state(), (*preparation)->hit()};
  }

  // Of the states that the cache behind NewPreparation keeps.
  virtual int64_t neighbor_cache_bytes() const = 0;

  virtual absl::StatusOr<std::unique_ptr<NeighborhoodObjective>> NewObjective(const ObjectiveSpec& spec) = 0;

  // An estimate of the bytes that preparing spec.cases, the last `prompt_positions` of each prompt
  // moving, and evaluating their objective take at most at
  // once; 0: little. The cases are of the model's tokens. Any thread.
  virtual int64_t ObjectiveBytes(const ObjectiveSpec& /*spec*/, int /*prompt_positions*/) const { return 0; }

  // Evaluations of several objectives, results in their order, each what it is alone: bitwise where the model is
  // batch invariant. A model that can runs them as one pass, which reads a weight once for all of them. One that fails
  // leaves the others as they are. The objectives outlive the run.
  virtual std::unique_ptr<EvaluationRun> NewEvaluationRun(std::vector<Evaluation> evaluations) {
    return std::make_unique<SeparateEvaluations>(std::move(evaluations));
  }
  // All of it at once.
  std::vector<absl::StatusOr<LossAndGradient>> EvaluateTogether(absl::Span<const Evaluation> evaluations) {
    const auto run = NewEvaluationRun({evaluations.begin(), evaluations.end()});
    const absl::StatusOr<bool> done = run->Advance(PiecewiseWork::kToTheEnd);
    if (!done.ok()) return std::vector<absl::StatusOr<LossAndGradient>>(evaluations.size(), done.status());
    return run->TakeResults();
  }
};

}  // namespace c3po

#endif  // C3PO_SERVER_TYPES_MODEL_RUNNER_H_
