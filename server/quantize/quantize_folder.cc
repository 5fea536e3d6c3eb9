#include "server/quantize/quantize_folder.h"

#include "absl/status/status.h"

namespace c3po {

absl::StatusOr<QuantizeResult> QuantizeFolder(const QuantizeOptions& options) {
  return absl::UnimplementedError(options.to + ": folders are not written yet");
}

}  // namespace c3po
