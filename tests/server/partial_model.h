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
  absl::Status AllocateKvCache(const KvCacheShape&) override { return absl::OkStatus(); }
  absl::StatusOr<std::shared_ptr<const PlacedRouting>> PlaceRouting(const RoutingOverride& routing) override {
    auto held = std::make_shared<HeldRouting>();
    held->routing = routing;
    return held;
  }
  absl::Status Forward(absl::Span<const Segment>, std::vector<SegmentOutput>&) override {
    return absl::UnimplementedError("the test expects no forward pass");
  }
  absl::StatusOr<std::unique_ptr<NeighborPreparation>> NewPreparation(const NeighborCase&, const MovingPart&) override {
    return absl::UnimplementedError("the test expects no neighbor");
  }
  absl::StatusOr<std::unique_ptr<NeighborhoodObjective>> NewObjective(const ObjectiveSpec&) override {
    return absl::UnimplementedError("the test expects no objective");
  }
  int64_t neighbor_cache_bytes() const override { return 0; }

 protected:
  struct HeldRouting final : PlacedRouting {
    RoutingOverride routing;
  };
  // Null: the segment's routing is the model's.
  static const RoutingOverride* RoutingOf(const Segment& segment) {
    return segment.routing == nullptr ? nullptr : &static_cast<const HeldRouting&>(*segment.routing).routing;
  }

  ModelShape shape_;
};

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_PARTIAL_MODEL_H_
