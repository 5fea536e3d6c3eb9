#ifndef C3PO_SERVER_EMBED_EMBEDDER_H_
#define C3PO_SERVER_EMBED_EMBEDDER_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace c3po {

// e(x) of METHOD.md: maps a prompt to the vector by which its nearest references are found. Distances are only
// meaningful between vectors of one digest().
class Embedder {
 public:
  virtual ~Embedder() = default;

  // One row per text, in the order of `texts`, each of dimension() floats and length 1 within 1e-5. A row does not
  // depend on the other texts, on a CPU not by a bit, elsewhere not beyond float32 rounding. Thread-safe.
  // InvalidArgument names the text by its index.
  virtual absl::StatusOr<std::vector<std::vector<float>>> Embed(absl::Span<const std::string> texts) = 0;

  virtual int dimension() const = 0;
  // Identifies weights and settings: equal digests give equal vectors. Stored with every reference.
  virtual std::string digest() const = 0;
  // For people: "all-minilm-l6-v2".
  virtual std::string name() const = 0;
};

}  // namespace c3po

#endif  // C3PO_SERVER_EMBED_EMBEDDER_H_
