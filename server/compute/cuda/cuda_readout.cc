// What requests want of their logits: reduced on the device where that is all they want, else read whole. One wait.

#include <algorithm>
#include <vector>

#include "server/compute/cpu/thread_pool.h"
#include "server/compute/cuda/cuda_backend.h"
#include "server/compute/cuda/tree_plan.h"
#include "server/sampling/readout.h"
#include "server/sampling/reduced_readout.h"

namespace c3po::cuda {
namespace {

bool AllInside(absl::Span<const int32_t> tokens, int64_t vocabulary) {
  return std::all_of(tokens.begin(), tokens.end(), [&](int32_t token) { return token >= 0 && token < vocabulary; });
}

// How the rows are read.
struct Reading {
  Reading(absl::Span<const ReadoutRequest* const> requests, int64_t vocabulary) {
    for (size_t i = 0; i < requests.size(); ++i) {
      const int needed = LargestNeeded(*requests[i], kTopMax);
      first_token.push_back(static_cast<int64_t>(tokens.size()));
      whole.push_back(needed < 0 || !AllInside(requests[i]->tokens, vocabulary));
      if (whole.back()) continue;
      reduced = true;
      top = std::max(top, needed);
      if (!requests[i]->distribution) continue;
      for (const int32_t token : requests[i]->tokens) tokens.push_back({static_cast<int32_t>(i), token});
    }
  }

  std::vector<bool> whole;  // by row: every logit is wanted
  bool reduced = false;     // of some row not
  int top = 0;
  std::vector<TokenOfRow> tokens;
  std::vector<int64_t> first_token;  // by row
};

}  // namespace

void CudaBackend::ReadOut(const Matrix& logits, absl::Span<const ReadoutRequest* const> requests,
                          absl::Span<Readout* const> readouts) {
  const int64_t rows = logits.rows, width = logits.columns;
  if (rows == 0) return;
  const Reading reading(requests, width);
  const StepArena::Scope scope(arena_);
  std::vector<HostCopies::Part> parts(4);  // of the reduced rows; then the whole ones
  if (reading.reduced) parts = Reduce(logits, reading.top, reading.tokens);
  for (int64_t r = 0; r < rows; ++r) {
    if (!reading.whole[static_cast<size_t>(r)]) continue;
    parts.push_back({FloatsOf(logits.Rows(r, 1)), width * 4});
  }
  // While the device computes, the host finds the tokens that forms allow; ReadOut is given them again.
  std::vector<TokenMatcher*> matchers;
  for (const ReadoutRequest* request : requests) {
    if (request->sampling != nullptr && request->matcher != nullptr) matchers.push_back(request->matcher);
  }
  cpu::ThreadPool::Shared().Run(static_cast<int64_t>(matchers.size()),
                                [&](int64_t i) { (void)matchers[static_cast<size_t>(i)]->NextTokens(); });
  const char* const host = copies_.Gather(parts);
  std::vector<const char*> at;
  for (const char* next = host; const HostCopies::Part& part : parts) {
    at.push_back(next);
    next += (part.bytes + 15) / 16 * 16;
  }
  const auto* const said = reinterpret_cast<const RowReadout*>(at[0]);
  const auto kept = static_cast<size_t>(std::min<int64_t>(reading.top, width));
  std::vector<const float*> whole(static_cast<size_t>(rows), nullptr);
  std::vector<int64_t> broken;  // Rows of which a logit is infinite or no number: their error names it.
  size_t part = 4;
  for (size_t r = 0; r < whole.size(); ++r) {
    if (reading.whole[r]) {
      whole[r] = reinterpret_cast<const float*>(at[part++]);
    } else if (said[r].finite == 0) {
      broken.push_back(static_cast<int64_t>(r));
    }
  }
  cpu::ThreadPool::Shared().Run(rows, [&](int64_t i) {
    const auto r = static_cast<size_t>(i);
    if (whole[r] != nullptr) {
      c3po::ReadOut({whole[r], static_cast<size_t>(width)}, *requests[r], *readouts[r]);
      return;
    }
    if (said[r].finite == 0) return;
    const size_t first = r * static_cast<size_t>(reading.top);
    ReducedLogits reduced{said[r].likeliest, said[r].likeliest_logit, said[r].log_normalizer, {}, {}, {}};
    reduced.largest_ids = {reinterpret_cast<const int32_t*>(at[1]) + first, kept};
    reduced.largest_logits = {reinterpret_cast<const float*>(at[2]) + first, kept};
    const size_t tokens = requests[r]->distribution ? requests[r]->tokens.size() : 0;
    reduced.token_logits = {reinterpret_cast<const float*>(at[3]) + reading.first_token[r], tokens};
    ReadOutReduced(reduced, *requests[r], *readouts[r]);
  });
  for (const int64_t r : broken) {
    std::vector<float> row(static_cast<size_t>(width));
    copies_.Download(FloatsOf(logits.Rows(r, 1)), width * 4, row.data());
    c3po::ReadOut(row, *requests[static_cast<size_t>(r)], *readouts[static_cast<size_t>(r)]);
  }
}

// What is read of all rows: RowReadout, ids and logits of the `top` largest, logits of the tokens. In the arena.
std::vector<HostCopies::Part> CudaBackend::Reduce(const Matrix& logits, int top,
                                                  const std::vector<TokenOfRow>& tokens) {
  const int64_t rows = logits.rows, largest = rows * top, count = static_cast<int64_t>(tokens.size());
  ReadoutArgs args;
  args.logits = FloatsOf(logits);
  args.stride = logits.stride;
  args.rows = static_cast<int32_t>(rows);
  args.vocabulary = static_cast<int32_t>(logits.columns);
  args.readouts = static_cast<RowReadout*>(arena_.Take(rows * int64_t{sizeof(RowReadout)}));
  args.top = top;
  args.top_ids = arena_.Integers(largest);
  args.top_logits = arena_.Floats(largest);
  ReadRows(args);
  float* const of_tokens = arena_.Floats(count);
  if (count > 0) {
    DeviceArrays arrays;
    const int64_t at = arrays.Add(tokens);
    const std::shared_ptr<void> piece = arrays.Send(*memory_, copies_);
    TokenLogitsArgs read;
    read.logits = args.logits;
    read.stride = args.stride;
    read.tokens = At<TokenOfRow>(piece, at);
    read.count = static_cast<int32_t>(count);
    read.out = of_tokens;
    Check(kernels_.token_logits(read, stream()), "reading logits");
  }
  return {{args.readouts, rows * int64_t{sizeof(RowReadout)}},
          {args.top_ids, largest * 4},
          {args.top_logits, largest * 4},
          {of_tokens, count * 4}};
}

}  // namespace c3po::cuda
