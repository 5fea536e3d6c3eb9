// Passes over objectives as one piece of work: recorded once, then replayed with other values.

#include <algorithm>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "server/compute/cuda/cuda_backend.h"
#include "server/compute/cuda/tree_plan.h"

namespace c3po::cuda {
namespace {

int64_t Padded(int64_t bytes) { return (bytes + 255) / 256 * 256; }

struct CudaTargetLoss final : public TargetLoss {
  TargetLossArgs args;  // but for what a run reads and writes
  std::shared_ptr<void> arrays;
};

}  // namespace

// While one runs.
struct CudaBackend::PassRun {
  const Pass& pass;
  RecordedPass& recorded;
  const float* values = nullptr;  // on the device: the pass's values, one span's after the other's
  bool records = false;
};

std::shared_ptr<const TargetLoss> CudaBackend::NewTargetLoss(const ContinuationLoss& loss) {
  auto placed = std::make_shared<CudaTargetLoss>();
  const size_t targets = loss.first_same.size(), continuations = loss.target_begin.size() - 1;
  // The continuations of each first target's group, in the order of their targets.
  std::vector<int32_t> same_begin(targets + 1), same(targets), continuation_of(targets);
  for (size_t c = 0; c < continuations; ++c) {
    std::fill(continuation_of.begin() + loss.target_begin[c], continuation_of.begin() + loss.target_begin[c + 1],
              static_cast<int32_t>(c));
  }
  for (const int32_t first : loss.first_same) ++same_begin[static_cast<size_t>(first) + 1];
  for (size_t t = 0; t < targets; ++t) same_begin[t + 1] += same_begin[t];
  std::vector<int32_t> next(same_begin.begin(), same_begin.end() - 1);
  for (size_t t = 0; t < targets; ++t) {
    same[static_cast<size_t>(next[static_cast<size_t>(loss.first_same[t])]++)] = continuation_of[t];
  }
  const auto add = [](DeviceArrays& arrays, const auto& span) {
    return arrays.Add(std::vector(span.begin(), span.end()));
  };
  DeviceArrays arrays;
  const int64_t weights_at = add(arrays, loss.case_weights), gold_at = add(arrays, loss.case_gold);
  const int64_t case_at = add(arrays, loss.case_begin), target_at = add(arrays, loss.target_begin);
  const int64_t same_begin_at = arrays.Add(same_begin), same_at = arrays.Add(same);
  std::vector<PairPlaces> pairs;
  for (const ContinuationLoss::Partner& partner : loss.partners) {
    pairs.push_back({partner.own_other, partner.answer, partner.other});
  }
  const int64_t pair_begin_at = add(arrays, loss.pair_begin), pairs_at = arrays.Add(pairs);
  const int64_t pair_weights_at = add(arrays, loss.pair_weights), base_at = add(arrays, loss.base_probabilities);
  placed->arrays = arrays.Send(*memory_, copies_);
  TargetLossArgs& args = placed->args;
  args.cases = static_cast<int32_t>(loss.case_weights.size());
  args.continuations = static_cast<int32_t>(continuations);
  args.targets = static_cast<int32_t>(targets);
  args.contrasts = loss.loss == SurrogateLoss::kChoices ? 1 : 0;
  args.case_weights = At<double>(placed->arrays, weights_at);
  args.case_gold = At<int32_t>(placed->arrays, gold_at);
  args.case_begin = At<int32_t>(placed->arrays, case_at);
  args.target_begin = At<int32_t>(placed->arrays, target_at);
  args.same_begin = At<int32_t>(placed->arrays, same_begin_at);
  args.same = At<int32_t>(placed->arrays, same_at);
  if (loss.loss == SurrogateLoss::kPairs) {
    args.pair_begin = At<int32_t>(placed->arrays, pair_begin_at);
    args.pairs = At<PairPlaces>(placed->arrays, pairs_at);
    args.pair_weights = At<double>(placed->arrays, pair_weights_at);
  }
  args.trust = loss.trust;
  if (loss.trust > 0) args.base = At<double>(placed->arrays, base_at);
  return placed;
}

OwnedMatrix CudaBackend::LossGradient(absl::Span<const TargetLoss* const> losses, const OwnedMatrix& logprobs) {
  const StepArena::Scope scope(arena_);
  OwnedMatrix out = Allocate(ElementType::kFloat32, 1, logprobs.view().columns);
  int64_t first = 0;
  for (const TargetLoss* const loss : losses) {
    TargetLossArgs args = static_cast<const CudaTargetLoss&>(*loss).args;
    args.logprobs = FloatsOf(logprobs.view()) + first;
    args.scores = static_cast<double*>(arena_.Take(args.continuations * int64_t{sizeof(double)}));
    args.derivatives = static_cast<double*>(arena_.Take(args.continuations * int64_t{sizeof(double)}));
    args.dlogprobs = FloatsOf(out.view()) + first;
    Check(kernels_.target_loss(args, stream()), "going back through a loss");
    first += args.targets;
  }
  return out;
}

TapeMemory CudaBackend::NewTapeMemory() { return {memory_, pass_run_ != nullptr ? &pass_arena_ : nullptr}; }

std::shared_ptr<void> CudaBackend::Place(const DeviceArrays& arrays) {
  if (pass_run_ == nullptr) return arrays.Send(*memory_, copies_);
  std::vector<RecordedPass::Constant>& constants = pass_run_->recorded.constants;
  const auto found = std::find_if(constants.begin(), constants.end(), [&](const RecordedPass::Constant& constant) {
    return constant.bytes == arrays.bytes();
  });
  if (found != constants.end()) return found->device;
  if (pass_run_->records) throw std::logic_error("a pass reads other arrays than when it ran before");
  constants.push_back({arrays.bytes(), arrays.Send(*memory_, copies_)});
  return constants.back().device;
}

// Where `values`, which lie in one of the running pass's, are on the device.
const float* CudaBackend::PlacedValues(absl::Span<const float> values) const {
  const float* device = pass_run_->values;
  for (const absl::Span<const float> all : pass_run_->pass.values) {
    const std::less_equal<const float*> no_later;
    if (no_later(all.data(), values.data()) && no_later(values.data() + values.size(), all.data() + all.size())) {
      return device + (values.data() - all.data());
    }
    device += all.size();
  }
  throw std::invalid_argument("a pass was not told of these values");
}

Graph CudaBackend::Record(absl::FunctionRef<void()> enqueue, const char* what) {
  Check(runtime_.BeginRecording(stream()), what);
  auto abandon = absl::MakeCleanup([this] {
    Graph unused = nullptr;
    if (runtime_.EndRecording(stream(), &unused) == nullptr) static_cast<void>(runtime_.DeleteGraph(unused));
  });
  enqueue();
  std::move(abandon).Cancel();
  Graph graph = nullptr;
  Check(runtime_.EndRecording(stream(), &graph), what);
  return graph;
}

// Values in, results out, each as one copy.
char* CudaBackend::PassBlock(int64_t bytes) {
  constexpr int64_t kLeast = int64_t{64} << 10;  // So that it seldom moves.
  if (bytes > pass_block_bytes_) {
    recorded_passes_.Clear();
    pass_block_ = nullptr;
    pass_block_bytes_ = 0;
    const int64_t room = std::max(kLeast, bytes + bytes / 2);
    pass_block_ = memory_->Take(room);
    pass_block_bytes_ = room;
  }
  return static_cast<char*>(pass_block_.get());
}

void CudaBackend::RunPass(const Pass& pass, absl::FunctionRef<void(const Results&)> enqueue, absl::Span<float> logprobs,
                          absl::Span<float> sums) {
  int64_t value_bytes = 0;
  for (const absl::Span<const float> values : pass.values) value_bytes += static_cast<int64_t>(values.size()) * 4;
  const int64_t experts = config_.experts, logprob_bytes = pass.targets * 4, sum_bytes = pass.sums * experts * 4;
  const int64_t sums_at = (logprob_bytes + 15) / 16 * 16, result_bytes = sums_at + sum_bytes;
  char* const block = PassBlock(Padded(value_bytes) + result_bytes);
  char* const out = block + Padded(value_bytes);
  RecordedPass& recorded = recorded_passes_.Of(pass);
  PassRun run{pass, recorded, reinterpret_cast<const float*>(block)};
  pass_run_ = &run;
  const absl::Cleanup ends = [this] { pass_run_ = nullptr; };

  char* host = static_cast<char*>(copies_.Prepare(value_bytes));
  for (const absl::Span<const float> values : pass.values) {
    std::memcpy(host, values.data(), values.size() * sizeof(float));
    host += values.size() * sizeof(float);
  }
  copies_.Send(block, value_bytes);
  const Results results{{out, ElementType::kFloat32, 1, pass.targets, pass.targets},
                        {out + sums_at, ElementType::kFloat32, pass.sums, experts, experts}};
  const auto all = [&] {
    if (sum_bytes > 0) Check(runtime_.Fill(stream(), out + sums_at, 0, sum_bytes), "clearing gradients");
    enqueue(results);
  };
  {
    const StepArena::Scope scratch(arena_), of_pass(pass_arena_);
    const ArenaPlaces places{arena_.generation(), pass_arena_.generation()};
    if (!(recorded.places == places)) recorded_passes_.DropGraph(recorded);
    const bool has_room = recorded.scratch_bytes <= arena_.size() && recorded.pass_bytes <= pass_arena_.size();
    if (recorded.graph == nullptr && recorded.ran && has_room) {
      run.records = true;
      recorded.graph = Record(all, "recording a pass");
      recorded.places = places;
    }
    if (recorded.graph != nullptr) {
      Check(runtime_.Launch(stream(), recorded.graph), "launching a recorded pass");
    } else {
      all();
      recorded.ran = true;
      recorded.scratch_bytes = arena_.peak();
      recorded.pass_bytes = pass_arena_.peak();
    }
  }
  const HostCopies::Part part{out, result_bytes};
  const char* const read = copies_.Gather({&part, 1});
  if (!logprobs.empty()) std::memcpy(logprobs.data(), read, static_cast<size_t>(logprob_bytes));
  if (!sums.empty()) std::memcpy(sums.data(), read + sums_at, static_cast<size_t>(sum_bytes));
}

}  // namespace c3po::cuda
