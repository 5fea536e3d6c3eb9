#ifndef C3PO_SERVER_SAMPLING_READOUT_H_
#define C3PO_SERVER_SAMPLING_READOUT_H_

#include "absl/types/span.h"
#include "server/types/readout.h"

namespace c3po {

// Says of logits [vocabulary] what `request` wants; vectors of `readout` keep their memory. Pure and thread-safe.
void ReadOut(absl::Span<const float> logits, const ReadoutRequest& request, Readout& readout);

}  // namespace c3po

#endif  // C3PO_SERVER_SAMPLING_READOUT_H_
