#ifndef C3PO_SERVER_COMPUTE_BACKEND_H_
#define C3PO_SERVER_COMPUTE_BACKEND_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/compute/matrix.h"
#include "server/compute/step_inputs.h"
#include "server/types/kv_blocks.h"
#include "server/types/readout.h"
#include "server/types/routing_override.h"

namespace c3po {

class DeviceQueue;
class WholePasses;

// What an override says about rows [begin, end) of an objective's matrix in one MoE layer.
struct RoutingRows {
  int64_t begin = 0, end = 0;
  RoutingOverride::Kind kind = RoutingOverride::Kind::kWeights;
  absl::Span<const float> values;  // [E], on the host, until the call returns
  int64_t sum = -1;                // Row of the sums that takes dJ/dvalues of these rows; -1: no gradient is wanted.
};

// What the forward pass of a block leaves for the way back. Opaque; only the backend that made it reads it.
class Tape {
 public:
  virtual ~Tape() = default;
};

// What a reference keeps of its passes: keys and values of its prompt's first positions in the layers from some layer
// on, and the rows of the tree below that enter this layer. In blocks, as many as its own length takes. Opaque, but for
// its size. It may outlive the backend, and go on any thread.
class ReferenceStates {
 public:
  virtual ~ReferenceStates() = default;
  virtual int64_t bytes() const = 0;  // of its blocks
  virtual bool in_pool() const = 0;   // else it has memory of its own
};

// The rows of a tree of tokens below a prompt: row r attends to the prompt before the tree, to its ancestors and to
// itself.
struct TreeShape {
  absl::Span<const int> parents;  // [rows]; -1 for row 0, else smaller than the row
  absl::Span<const int> depths;   // [rows]; position = prefix + depth
  int64_t prefix = 0;             // positions of the prompt before the tree

  int64_t rows() const { return static_cast<int64_t>(parents.size()); }
};

// A tree whose prompt's keys and values are there already.
struct TreeCase {
  TreeShape shape;
  std::shared_ptr<const ReferenceStates> states;
};

// The packed rows of several trees, those of one after those of the other. Opaque.
class PackedTrees {
 public:
  virtual ~PackedTrees() = default;
};

// The rows of several prompts' beginnings, and then those of the trees below them, all computed now. Opaque.
class PreparationRows {
 public:
  virtual ~PreparationRows() = default;
};

// A layer's feed-forward block at rows that do not change, of which only the mixing weights do: what each expert gives
// there is computed once, when a row first selects it. Opaque.
class RememberedExperts {
 public:
  virtual ~RememberedExperts() = default;
};

// A sum of rows [d], in double precision. Opaque.
class RowSum {
 public:
  virtual ~RowSum() = default;
};

// Where the LM head is read: target tokens, each after one of `rows` rows. Opaque.
class TargetTokens {
 public:
  virtual ~TargetTokens() = default;
};

// What a backend is and does, told to those who plan for it.
struct BackendInfo {
  ElementType activations = ElementType::kFloat32;  // of hidden states
  bool batch_invariant = false;  // A row's result is bitwise the same whatever other rows are in the matrix.
  // Attention of an objective takes memory for rows and prompts that are short, too, for half as much again at most:
  // its masks for as long as the objective lives, all else while a product runs.
  bool pads = false;
  bool holds_logits = false;                    // The LM head of an objective holds the logits of all its rows at once.
  bool host_memory = false;                     // Weights, matrices and caches lie in the host's memory.
  ElementType weights = ElementType::kFloat32;  // of matrices, as they lie in memory
  int64_t weight_bytes = 0;                     // that all weights take
  int experts_per_token_max = 0;                // That StepInputs::counts may give a row, at least the model's own.
  // Of the cache's keys and values and of references'. They are rounded before any row reads them.
  ElementType kv = ElementType::kFloat32;
  WeightFormat format = WeightFormat::kElements;  // of the large matrices; `weights` is that of the others
};

// A device that computes the blocks of one model. Notation: R rows, d hidden size, E experts, V vocabulary size; x is
// the residual stream. A block includes its norm and its residual addition: x + m Block(RmsNorm(x)), m the
// configuration's residual_multiplier. `layer` is a decoder layer; weights are the backend's own, in its own layout.
//
// Work is ordered: each call sees the results of those before it, and only Read waits for them. Engine thread only.
// Misuse and a lack of memory throw.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual const BackendInfo& info() const = 0;

  // Of a device with memory of its own; nothing where that is the host's.
  struct OwnMemory {
    int64_t bytes = 0;       // that the device has
    int64_t free_bytes = 0;  // now, whoever uses the rest
  };
  virtual std::optional<OwnMemory> own_memory() const { return std::nullopt; }

  // A queue of the same device for another computation than the model's (server/compute/device_queue.h). It outlives
  // the backend. Thread-safe. FailedPrecondition: the device gives none.
  virtual absl::StatusOr<std::unique_ptr<DeviceQueue>> NewQueue() const = 0;

  // Memory. Rows of unknown content that live until the last copy goes.
  virtual OwnedMatrix Allocate(ElementType type, int64_t rows, int64_t columns) = 0;
  // Of the activations' type, [rows, d].
  virtual OwnedMatrix AllocateHidden(int64_t rows) = 0;
  // From the host, row-major, converted to the matrix's type.
  virtual void Write(absl::Span<const float> from, Matrix to) = 0;
  // To the host as float32, row-major; waits for all work before it.
  virtual void Read(const Matrix& from, absl::Span<float> to) = 0;
  // The same numbers, of packed float32 rows: where they lie, if that is the host, until the matrix changes; else read
  // into `staging`.
  virtual absl::Span<const float> HostView(const Matrix& from, std::vector<float>& staging);
  // Of the same shape; converts.
  virtual void Copy(const Matrix& from, Matrix to) = 0;

  // Blocks of keys and values in all layers, of unknown content, instead of those before.
  virtual void AllocateKvCache(const KvCacheShape& cache) = 0;
  virtual int64_t kv_cache_bytes() const = 0;
  // That a cache of this size would take.
  virtual int64_t KvCacheBytes(const KvCacheShape& cache) const = 0;

  // One step of running sequences: its inputs are placed, then its blocks enqueued, then its results read.
  // The inputs that the blocks below work on until the next call, and where they work.
  virtual StepMatrices PlaceStep(const StepInputs& inputs) = 0;
  // `enqueue` calls the blocks below with the placed step's matrices, and waits for nothing. A backend that has
  // recorded a step of this shape at these places may replay it, and not call `enqueue`.
  virtual void RunStep(const StepShape& shape, absl::FunctionRef<void()> enqueue) = 0;
  // [R, d], the placed tokens' rows of the embedding times the embedding multiplier.
  virtual void Embed(Matrix hidden) = 0;
  // Puts the placed rows' keys and values into their blocks of the cache; x in place.
  virtual void Attention(int layer, Matrix hidden) = 0;
  // x in place. `probabilities`, float32 [R, E] or empty, receives softmax(router logits + shift), or the weights that
  // replace it; of an MoE layer only. Rows that no placed override names are routed by the model. The experts and
  // mixing weights of a row are those that ChooseExperts (server/model/config/expert_choice.h) makes of its
  // probabilities, but for the rounding of a sum in another order.
  virtual void FeedForward(int layer, Matrix hidden, Matrix probabilities) = 0;
  // Final norm and LM head of the placed head rows: float32 [head rows, V].
  virtual void Logits(const Matrix& hidden, Matrix logits) = 0;
  // Of the first of these rows, which have the placed targets; scores, float32 [targets, 2]: log
  // softmax(logits)[target]; 1 where the target is the likeliest token, of equals the one with the lowest id, else 0.
  virtual void ScoreTargets(const Matrix& logits, Matrix scores) = 0;
  // What each of requests [R] wants of the logits' row, one request a row; waits for all work before it. Rows are read
  // to the host where a backend knows no better, and there side by side.
  virtual void ReadOut(const Matrix& logits, absl::Span<const ReadoutRequest* const> requests,
                       absl::Span<Readout* const> readouts);

  // Of no rows.
  virtual std::shared_ptr<RowSum> NewRowSum() = 0;
  // Of [R, d]. Where the backend is batch invariant the sum is the same however the rows are cut into calls.
  virtual void AddRows(const Matrix& rows, RowSum& sum) = 0;
  // The sum over `count`; waits as Read does.
  virtual void ReadMean(const RowSum& sum, int64_t count, absl::Span<float> mean) = 0;

  // The pool that references' states lie in from now on, of at most `bytes`; of 0 until then. It grows as it is used,
  // so that who keeps no states has none.
  virtual void LimitReferenceStates(int64_t bytes) = 0;
  virtual int64_t reference_bytes_in_use() const = 0;  // in the pool
  // States of `positions` and of `tree_rows`, of unknown content. While the pool has too few blocks, `drop` is told how
  // many bytes are missing: it lets go of states that give back as many, or of none and says false. Then, and where the
  // whole pool is too small, the states have memory of their own. Without memory it throws, and the pool is as before.
  virtual std::shared_ptr<ReferenceStates> NewReferenceStates(int first_layer, int64_t positions, int64_t tree_rows,
                                                              absl::FunctionRef<bool(int64_t bytes)> drop) = 0;
  // The tree's rows entering the states' first layer, [tree_rows, d].
  virtual void StoreTree(const Matrix& hidden, ReferenceStates& states) = 0;
  virtual void LoadTree(const ReferenceStates& states, Matrix hidden) = 0;

  // Preparing neighbors: the prompts' beginnings, one after the other, and behind them the trees of what moves,
  // likewise, climb as one matrix.

  // [R, d], the tokens' rows of the embedding times the embedding multiplier.
  virtual void Embed(absl::Span<const int64_t> tokens, Matrix hidden) = 0;
  virtual std::unique_ptr<PreparationRows> NewPreparationRows(absl::Span<const TreeShape> trees) = 0;
  // x in place, of the prompts' rows and, where hidden has them, the trees'. `states`, none or one per neighbor,
  // receive the prompts' keys and values; with `states_only` nothing else is computed.
  virtual void PreparationAttention(int layer, const PreparationRows& rows, absl::Span<ReferenceStates* const> states,
                                    bool states_only, Matrix hidden) = 0;
  // x in place, routed by the model.
  virtual void PreparationFeedForward(int layer, Matrix hidden) = 0;

  // An objective's rows, layer by layer. Several PackedTrees are one matrix, packed in their order. `tape`, unless
  // null, receives what the way back reads.
  virtual std::unique_ptr<PackedTrees> PackTrees(absl::Span<const TreeCase> cases) = 0;
  virtual OwnedMatrix TreeAttention(int layer, absl::Span<const PackedTrees* const> trees, const OwnedMatrix& hidden,
                                    std::unique_ptr<Tape>* tape) = 0;
  // dJ/dx from dJ/dy, y what TreeAttention returned.
  virtual OwnedMatrix TreeAttentionBackward(int layer, absl::Span<const PackedTrees* const> trees, const Tape& tape,
                                            const OwnedMatrix& dout) = 0;
  virtual OwnedMatrix FeedForward(int layer, absl::Span<const RoutingRows> routing, const OwnedMatrix& hidden,
                                  std::unique_ptr<Tape>* tape) = 0;
  // dJ/dx, and dJ/dvalues of `routing`, which is what the forward pass was given: each row of `sums` (float32 [n, E])
  // that some of it names is overwritten with the total of those. Entries outside the top-k are 0 for weights.
  virtual OwnedMatrix FeedForwardBackward(int layer, absl::Span<const RoutingRows> routing, const Tape& tape,
                                          const OwnedMatrix& dout, Matrix sums) = 0;

  // The feed-forward block at `hidden`. Its experts' outputs are kept where they take at most `bytes_max`; else each
  // run computes them.
  virtual std::unique_ptr<RememberedExperts> Remember(int layer, const OwnedMatrix& hidden, int64_t bytes_max) = 0;
  virtual OwnedMatrix RunRemembered(RememberedExperts& experts, absl::Span<const RoutingRows> routing,
                                    std::unique_ptr<Tape>* tape) = 0;
  // Only dJ/dvalues, as FeedForwardBackward gives it.
  virtual void RememberedBackward(const RememberedExperts& experts, absl::Span<const RoutingRows> routing,
                                  const Tape& tape, const OwnedMatrix& dout, Matrix sums) = 0;

  // Targets [T]: tokens[t] after row rows[t] of `row_count`. With `targets_only` no other token counts: the softmax is
  // taken over the targets.
  virtual std::shared_ptr<const TargetTokens> NewTargets(int64_t row_count, absl::Span<const int64_t> rows,
                                                         absl::Span<const int64_t> tokens, bool targets_only) = 0;
  // float32 [1, sum of T]: log-probabilities of all targets, in their order. The rows of one follow those of the other.
  virtual OwnedMatrix TargetLogprobs(absl::Span<const TargetTokens* const> targets, const OwnedMatrix& hidden,
                                     std::unique_ptr<Tape>* tape) = 0;
  // dJ/dhidden from dJ/dlogp of the targets, in their order.
  virtual OwnedMatrix TargetLogprobsBackward(absl::Span<const TargetTokens* const> targets, const Tape& tape,
                                             absl::Span<const float> dlogprobs) = 0;

  // Of a backend that runs passes over objectives as one piece of work (server/compute/whole_passes.h); else null.
  virtual WholePasses* whole_passes() { return nullptr; }
};

}  // namespace c3po

#endif  // C3PO_SERVER_COMPUTE_BACKEND_H_
