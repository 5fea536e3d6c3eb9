#ifndef C3PO_SERVER_COMPUTE_STEP_BUFFERS_H_
#define C3PO_SERVER_COMPUTE_STEP_BUFFERS_H_

#include "server/compute/backend.h"
#include "server/compute/step_inputs.h"

namespace c3po {

// Rows that the memory has room for, where a backend computes more than are wanted.
struct StepRoom {
  int64_t rows = 0, head_rows = 0;
};

// The memory of a step's matrices, which grows to the largest step and stays, so that steps like those before take none
// and find theirs where they were. A matrix of more than kKeptBytesMax, such as the logits of a long continuation that
// is scored, is the step's own and goes with it.
class StepBuffers {
 public:
  // Throws what Allocate throws; then nothing is kept of the matrix that lacked memory.
  StepMatrices Place(Backend& backend, const StepInputs& inputs, int64_t hidden, int64_t experts, int64_t vocabulary,
                     const StepRoom& room = {});

 private:
  static constexpr int64_t kKeptBytesMax = int64_t{16} << 20;  // Of one matrix.
  static OwnedMatrix Take(Backend& backend, OwnedMatrix& kept, ElementType type, int64_t rows, int64_t columns,
                          int64_t room = 0);

  OwnedMatrix hidden_, probabilities_, logits_, scores_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_COMPUTE_STEP_BUFFERS_H_
