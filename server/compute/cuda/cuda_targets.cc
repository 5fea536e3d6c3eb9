// What is read of logits: scores of targets, and the LM head of an objective with its way back.

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "server/compute/cuda/cuda_backend.h"
#include "server/compute/cuda/gather_rows.h"
#include "server/compute/cuda/tree_plan.h"
#include "server/compute/target_rows.h"

namespace c3po::cuda {
namespace {

struct CudaTargets final : public TargetRows {
  PackedWeights weights;      // [W, d]: the LM head, or the rows of it that are read
  std::shared_ptr<void> own;  // where the latter lie
};

const CudaTargets& Of(const TargetTokens* targets) { return static_cast<const CudaTargets&>(*targets); }

struct Product : TargetGroup {
  // On the device. Its targets also by row, of equals in the order they were named: which of all targets each is.
  std::shared_ptr<void> arrays;
  int64_t row_index_at = 0, tokens_at = 0, begin_at = 0, ids_at = 0, index_at = 0;
  PackedWeights weights;
  float* logits = nullptr;         // [S, W]
  RowReadout* readouts = nullptr;  // [S]
};

// The rows of all that a product reads, and its targets by row.
void PlaceProduct(absl::Span<const TargetTokens* const> targets, const TargetOffsets& first,
                  absl::FunctionRef<std::shared_ptr<void>(const DeviceArrays&)> place, Product& product) {
  struct Target {
    int64_t row, of;
    int32_t token;
  };
  std::vector<int> row_index;
  std::vector<Target> all;
  for (const size_t i : product.heads) {
    const CudaTargets& head = Of(targets[i]);
    for (size_t t = 0; t < head.rows.size(); ++t) {
      all.push_back({static_cast<int64_t>(row_index.size()) + head.rows[t], first.targets[i] + static_cast<int64_t>(t),
                     static_cast<int32_t>(head.tokens[t])});
    }
    for (int64_t r = 0; r < head.row_count; ++r) row_index.push_back(static_cast<int>(first.rows[i] + r));
  }
  // In the order they were named, as their log-probabilities are given, and by row.
  std::vector<TokenOfRow> tokens;
  for (const Target& target : all) tokens.push_back({static_cast<int32_t>(target.row), target.token});
  std::stable_sort(all.begin(), all.end(), [](const Target& a, const Target& b) { return a.row < b.row; });
  std::vector<int32_t> begin(row_index.size() + 1), ids, index;
  for (const Target& target : all) {
    index.push_back(static_cast<int32_t>(target.of));
    ids.push_back(target.token);
    ++begin[static_cast<size_t>(target.row) + 1];
  }
  std::partial_sum(begin.begin(), begin.end(), begin.begin());
  DeviceArrays arrays;
  product.row_index_at = arrays.Add(row_index);
  product.tokens_at = arrays.Add(tokens);
  product.begin_at = arrays.Add(begin);
  product.ids_at = arrays.Add(ids);
  product.index_at = arrays.Add(index);
  product.arrays = place(arrays);
}

}  // namespace

struct CudaBackend::TargetsTape final : public Tape {
  explicit TargetsTape(TapeMemory of) : memory(std::move(of)) {}
  OwnedMatrix hidden;
  std::vector<Product> products;
  TapeMemory memory;
};

// The readouts of logits [rows, vocabulary], `stride` apart.
void CudaBackend::ReadRows(ReadoutArgs args) {
  if (args.rows == 0) return;
  const StepArena::Scope scope(arena_);
  const int64_t chunks = ReadoutChunks(args.vocabulary);
  args.chunks =
      static_cast<ChunkReadout*>(arena_.Take(args.rows * chunks * static_cast<int64_t>(sizeof(ChunkReadout))));
  if (args.top > 0) {
    args.candidates = static_cast<uint64_t*>(arena_.Take(args.rows * chunks * args.top * int64_t{sizeof(uint64_t)}));
  }
  args.arrived = Arrived(args.rows);
  Check(kernels_.readout(args, stream()), "reading logits");
}

void CudaBackend::ScoreTargets(const Matrix& logits, Matrix scores) {
  const StepArena::Scope scope(arena_);
  ReadoutArgs args;
  args.logits = FloatsOf(logits);
  args.stride = logits.stride;
  args.rows = args.target_rows = static_cast<int32_t>(plan_.form().targets);
  args.vocabulary = static_cast<int32_t>(logits.columns);
  args.readouts = static_cast<RowReadout*>(arena_.Take(args.rows * int64_t{sizeof(RowReadout)}));
  args.targets = plan_.places().targets;
  args.scores = FloatsOf(scores);
  ReadRows(args);
}

std::shared_ptr<const TargetTokens> CudaBackend::NewTargets(int64_t row_count, absl::Span<const int64_t> rows,
                                                            absl::Span<const int64_t> tokens, bool targets_only) {
  auto head = std::make_shared<CudaTargets>();
  head->row_count = row_count;
  head->rows.assign(rows.begin(), rows.end());
  head->tokens.assign(tokens.begin(), tokens.end());
  head->weights = weights_.head;
  head->weights_data = head->weights.data;
  if (!targets_only) return head;
  const std::vector<int64_t> tokens_read = head->TakeDistinctTokens();
  const std::vector<int32_t> read(tokens_read.begin(), tokens_read.end());
  const auto count = static_cast<int32_t>(read.size());
  head->weights.rows = count;
  head->weights.matrix_bytes = PackedBytes(count, weights_.head.columns, weights_.head.planes, weights_.head.bits);
  head->own = memory_->Take(head->weights.matrix_bytes);
  head->weights.data = head->weights_data = head->own.get();
  DeviceArrays arrays;
  const int64_t at = arrays.Add(read);
  const std::shared_ptr<void> piece = arrays.Send(*memory_, copies_);
  Check(kernels_.gather_rows({weights_.head, At<int>(piece, at), count, head->own.get()}, stream()), "gathering rows");
  return head;
}

OwnedMatrix CudaBackend::TargetLogprobs(absl::Span<const TargetTokens* const> targets, const OwnedMatrix& hidden,
                                        std::unique_ptr<Tape>* tape_out) {
  const StepArena::Scope scope(arena_);
  auto tape = std::make_unique<TargetsTape>(NewTapeMemory());
  RowMemory& memory = tape_out ? static_cast<RowMemory&>(tape->memory) : arena_;
  const TargetOffsets first(targets);
  OwnedMatrix out = Allocate(ElementType::kFloat32, 1, first.targets.back());
  tape->products = GroupByWeights<Product>(targets);
  for (Product& product : tape->products) {
    product.weights = Of(targets[product.heads.front()]).weights;
    PlaceProduct(
        targets, first, [this](const DeviceArrays& arrays) { return Place(arrays); }, product);
    product.logits = memory.Floats(product.rows * product.weights.rows);
    product.readouts = static_cast<RowReadout*>(memory.Take(product.rows * int64_t{sizeof(RowReadout)}));
    HeadProduct(product.weights, FloatsOf(hidden.view()), At<int>(product.arrays, product.row_index_at), product.rows,
                product.logits, product.weights.rows);
    ReadoutArgs read;
    read.logits = product.logits;
    read.stride = product.weights.rows;
    read.rows = static_cast<int32_t>(product.rows);
    read.vocabulary = product.weights.rows;
    read.readouts = product.readouts;
    ReadRows(read);
    int64_t next = 0;
    for (const size_t i : product.heads) {
      TokenLogitsArgs tokens;
      tokens.logits = product.logits;
      tokens.stride = product.weights.rows;
      tokens.tokens = At<TokenOfRow>(product.arrays, product.tokens_at) + next;
      tokens.count = static_cast<int32_t>(Of(targets[i]).rows.size());
      tokens.readouts = product.readouts;
      tokens.out = FloatsOf(out.view()) + first.targets[i];
      if (tokens.count > 0) Check(kernels_.token_logits(tokens, stream()), "reading log-probabilities");
      next += tokens.count;
    }
  }
  tape->hidden = hidden;
  if (tape_out) *tape_out = std::move(tape);
  return out;
}

OwnedMatrix CudaBackend::TargetLogprobsBackward(absl::Span<const TargetTokens* const> targets, const Tape& taped,
                                                absl::Span<const float> dlogprobs) {
  const OwnedMatrix placed = Allocate(ElementType::kFloat32, 1, static_cast<int64_t>(dlogprobs.size()));
  Write(dlogprobs, placed.view());
  return TargetLogprobsBackward(targets, taped, placed);
}

OwnedMatrix CudaBackend::TargetLogprobsBackward(absl::Span<const TargetTokens* const> targets, const Tape& taped,
                                                const OwnedMatrix& dlogprobs) {
  const auto& tape = static_cast<const TargetsTape&>(taped);
  const int64_t d = config_.hidden_size, rows = tape.hidden.rows();
  const TargetOffsets first(targets);
  const StepArena::Scope scope(arena_);
  float* const dnormed = arena_.Floats(rows * d);
  for (const Product& product : tape.products) {
    const StepArena::Scope of_product(arena_);
    LogitGradientArgs gradient;
    gradient.logits = product.logits;
    gradient.stride = product.weights.rows;
    gradient.rows = static_cast<int32_t>(product.rows);
    gradient.vocabulary = product.weights.rows;
    gradient.readouts = product.readouts;
    gradient.target_begin = At<int32_t>(product.arrays, product.begin_at);
    gradient.target_tokens = At<int32_t>(product.arrays, product.ids_at);
    gradient.target_index = At<int32_t>(product.arrays, product.index_at);
    gradient.dlogprobs = FloatsOf(dlogprobs.view());
    gradient.divisor = static_cast<float>(config_.logits_divisor);
    gradient.planes = planes();
    gradient.dlogits = NewPlanes(product.rows, product.weights.rows);
    Check(kernels_.logit_gradient(gradient, stream()), "going back through a softmax");
    // A product of some heads' rows gives them one behind the other; where it is the only one, these are all rows.
    const bool all = tape.products.size() == 1;
    float* const together = all ? dnormed : arena_.Floats(product.rows * d);
    ProductArgs back;
    back.weights = product.weights;
    back.transposed = true;
    back.rows = static_cast<int>(product.rows);
    back.source.kind = RowSource::kPlanes;
    back.planes = gradient.dlogits;
    back.out = together;
    back.out_stride = d;
    Multiply(back);
    int64_t next = 0;
    for (const size_t i : product.heads) {
      const int64_t count = Of(targets[i]).row_count;
      if (!all && count > 0) {
        Check(runtime_.CopyOnDevice(stream(), dnormed + first.rows[i] * d, together + next * d, count * d * 4),
              "copying on the device");
      }
      next += count;
    }
  }
  OwnedMatrix dhidden = AllocateHidden(rows);
  NormBackward(dnormed, tape.hidden.view(), weights_.final_norm, nullptr, FloatsOf(dhidden.view()));
  return dhidden;
}

}  // namespace c3po::cuda
