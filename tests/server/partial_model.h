#ifndef C3PO_TESTS_SERVER_PARTIAL_MODEL_H_
#define C3PO_TESTS_SERVER_PARTIAL_MODEL_H_

#include <memory>
#include <vector>

#include "server/types/model_runner.h"

namespace c3po {

// What the fake models of tests begin with: a shape to fill in, and calls that a test does not expect. A fake overrides
// those that it does.
class PartialModel : public ModelRunner {
 public:
  const ModelShape& shape() const override { return shape_; }
  absl::Status AllocateKvCache(int64_t) override { return absl::OkStatus(); }
  absl::StatusOr<std::vector<SegmentOutput>> Forward(absl::Span<const Segment>) override {
    return absl::UnimplementedError("the test expects no forward pass");
  }
  absl::StatusOr<std::unique_ptr<NeighborPreparation>> NewPreparation(const NeighborCase&, const MovingPart&) override {
    return absl::UnimplementedError("the test expects no neighbor");
  }
  absl::StatusOr<std::unique_ptr<NeighborhoodObjective>> NewObjective(const ObjectiveSpec&) override {
    return absl::UnimplementedError("the test expects no objective");
  }
  NeighborCacheStats neighbor_cache_stats() const override { return {}; }

 protected:
  ModelShape shape_;
};

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_PARTIAL_MODEL_H_
