#ifndef C3PO_SERVER_COMPUTE_CUDA_READOUT_H_
#define C3PO_SERVER_COMPUTE_CUDA_READOUT_H_

#include <cstdint>

#include "index/base/cuda/runtime.h"
#include "server/compute/cuda/layout.h"

// What is read of logits [n, V], float32, `stride` apart, without copying them to the host. All pointers are of the
// device. A row's results are bitwise the same whatever other rows there are. Thread-safe; nothing is checked.
namespace c3po::cuda {

inline constexpr int kReadoutChunk = 4096;  // Logits of a row that one block reads.
inline constexpr int kTopMax = 256;

constexpr int32_t ReadoutChunks(int32_t vocabulary) { return (vocabulary + kReadoutChunk - 1) / kReadoutChunk; }

struct RowReadout {
  double log_normalizer = 0;  // log sum_v exp(logit_v), each exponential and the sums in double precision
  float likeliest_logit = 0;
  int32_t likeliest = 0;  // of equals the lowest id
  int32_t finite = 0;     // 0: some logit is infinite or no number; then nothing else says anything
  int32_t reserved = 0;
};

struct TokenOfRow {
  int32_t row = 0;
  int32_t token = 0;
};

// What a chunk leaves to the row's last block.
struct ChunkReadout {
  uint64_t largest = 0;  // the logit's order, then the lower id
  double sum = 0;        // of exp(logit - the largest)
  int32_t finite = 0;
  int32_t reserved = 0;
};

struct ReadoutArgs {
  const float* logits = nullptr;
  int64_t stride = 0;
  int32_t rows = 0;
  int32_t vocabulary = 0;
  RowReadout* readouts = nullptr;  // [rows]

  // Of the first rows, one target each: log softmax(logits)[target]; 1 where it is the likeliest token, else 0.
  const int32_t* targets = nullptr;  // [target_rows]
  int32_t target_rows = 0;
  float* scores = nullptr;  // [target_rows, 2]

  // The `top` largest logits of each row and their ids, at most kTopMax, in descending order, of equals the lowest id
  // first; behind the vocabulary's end -1 and minus infinity. 0: none.
  int32_t top = 0;
  int32_t* top_ids = nullptr;   // [rows, top]
  float* top_logits = nullptr;  // [rows, top]

  ChunkReadout* chunks = nullptr;  // [rows, ReadoutChunks(V)], room
  uint64_t* candidates = nullptr;  // [rows, ReadoutChunks(V), top], room
  int32_t* arrived = nullptr;      // [rows], 0 before and after
};
Error LaunchReadout(const ReadoutArgs& args, Stream stream);

// Of some tokens: their logits, or, with `readouts`, their logarithmic probabilities float(logit - log_normalizer).
struct TokenLogitsArgs {
  const float* logits = nullptr;
  int64_t stride = 0;
  const TokenOfRow* tokens = nullptr;  // [count]
  int32_t count = 0;
  const RowReadout* readouts = nullptr;  // or null
  float* out = nullptr;                  // [count]
};
Error LaunchTokenLogits(const TokenLogitsArgs& args, Stream stream);

// The way back from log-probabilities of targets t, whose row is r: with p = softmax(logits of r), dJ/dlogp_t = d_t,
//   dlogits[r, v] = (sum over r's t of d_t [v = token_t] - p_v sum over r's t of d_t) / divisor
// as planes, in the order of rows that enter x W (layout.h), padded by zeros to a multiple of 32.
struct LogitGradientArgs {
  const float* logits = nullptr;
  int64_t stride = 0;
  int32_t rows = 0;
  int32_t vocabulary = 0;
  const RowReadout* readouts = nullptr;    // [rows]
  const int32_t* target_begin = nullptr;   // [rows + 1] row r's targets are [target_begin[r], target_begin[r + 1])
  const int32_t* target_tokens = nullptr;  // [targets]
  const int32_t* target_index = nullptr;   // [targets] whose place among `dlogprobs` this is
  const float* dlogprobs = nullptr;
  float divisor = 1;
  int32_t planes = 1;
  ActivationPlanes dlogits;
};
Error LaunchLogitGradient(const LogitGradientArgs& args, Stream stream);

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_READOUT_H_
