#ifndef C3PO_INDEX_SEARCH_INDEX_BUILDER_H_
#define C3PO_INDEX_SEARCH_INDEX_BUILDER_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "index/search/hnsw_index.h"
#include "index/search/neighbor_index.h"

namespace c3po {

class IndexDevice;

struct IndexOptions {
  int dimension = 0;
  int64_t exact_max = 2000;  // Vectors in an exact index; more are searched through a graph.
  HnswOptions hnsw;

  // Where indexes are searched, if its memory holds them; null: on the host. Not owned.
  IndexDevice* device = nullptr;
  int64_t device_min = 256;            // Vectors that are worth a trip to the device.
  int64_t device_exact_max = 1000000;  // Vectors that the device scans; more are searched through a graph.
};

// Chooses the kind of index for a number of vectors, and makes it. The one place that knows which kinds there are.
// Immutable; thread-safe.
class IndexBuilder {
 public:
  // `options` have passed Check.
  explicit IndexBuilder(const IndexOptions& options) : options_(options) {}

  // InvalidArgument names the option that is out of its range.
  static absl::Status Check(const IndexOptions& options);

  // An index of these vectors, of different labels. Of the kind that their number asks for, on the device where they
  // are enough and have room there; where that cannot be made (its library ran out of memory), an exact one: slower,
  // and right.
  std::shared_ptr<NeighborIndex> Build(absl::Span<const LabeledVector> vectors) const;

  // An exact index on the device; null: there is none, it has no room, or the vectors are too few or too many for one.
  std::shared_ptr<NeighborIndex> BuildOnDevice(absl::Span<const LabeledVector> vectors) const;

  // Whether `index` should give way to one of Build when it has `size` vectors: it is of a kind for fewer. An index of
  // a kind for more stays when it shrinks.
  bool Outgrown(const NeighborIndex& index, int64_t size) const;

  // Whether an index of so many vectors takes long to build, so that NeighborIndex::Save writes a file of it.
  bool Saved(int64_t size) const { return size > options_.exact_max; }

  // What NeighborIndex::Save wrote, if it holds exactly these vectors. NotFound: no such file. Any other status says
  // why the file is refused: HnswIndex::Load's, or FailedPrecondition for other vectors. The caller builds then.
  absl::StatusOr<std::shared_ptr<NeighborIndex>> Load(const std::string& path, int64_t generation,
                                                      absl::Span<const LabeledVector> vectors) const;

 private:
  bool DeviceTakes(int64_t size) const;
  // On the device where that takes it, else as it is.
  std::shared_ptr<NeighborIndex> Placed(std::unique_ptr<HnswIndex> graph) const;

  const IndexOptions options_;
};

}  // namespace c3po

#endif  // C3PO_INDEX_SEARCH_INDEX_BUILDER_H_
