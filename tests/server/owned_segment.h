#ifndef C3PO_TESTS_SERVER_OWNED_SEGMENT_H_
#define C3PO_TESTS_SERVER_OWNED_SEGMENT_H_

#include <cstdint>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/compute/kv_runs.h"
#include "server/types/model_runner.h"

namespace c3po {

// A Segment that owns what it says, of a cache whose blocks are single positions: a run's slots are its blocks.
struct OwnedSegment {
  std::vector<KvRun> kv;
  int start = 0;
  std::vector<int32_t> tokens;
  std::vector<int32_t> targets;
  bool resume = false;
  int entry_layer = 0;
  std::shared_ptr<const EntryState> entry;
  std::shared_ptr<const RoutingOverride> routing;
  int override_start = 0;
  int override_end = std::numeric_limits<int>::max();
  bool want_logits = true;
  bool want_capture = false;
  bool want_routes = false;
  int experts_per_token = 0;
  int state_layer = -1;
  int mean_layer = -1;
  std::shared_ptr<StateSum>* state_sum = nullptr;  // null: one of the pass's own
};

inline KvCacheShape SlotsOf(int64_t positions) { return {positions, 1}; }

inline std::vector<int32_t> BlocksOf(absl::Span<const KvRun> runs) {
  std::vector<int32_t> blocks;
  for (const KvRun& run : runs) {
    for (int64_t i = 0; i < run.length; ++i) blocks.push_back(static_cast<int32_t>(run.slot + i));
  }
  return blocks;
}

// One pass over all of them.
inline absl::StatusOr<std::vector<SegmentOutput>> RunSegments(ModelRunner& model,
                                                              const std::vector<OwnedSegment>& owned) {
  std::vector<std::vector<int32_t>> blocks;
  std::vector<std::shared_ptr<StateSum>> sums(owned.size());
  std::vector<std::shared_ptr<const PlacedRouting>> placed;
  std::vector<Segment> segments;
  for (const OwnedSegment& own : owned) {
    Segment segment;
    blocks.push_back(BlocksOf(own.kv));
    segment.kv.blocks = blocks.back();
    segment.start = own.start;
    segment.tokens = own.tokens;
    segment.targets = own.targets;
    segment.resume = own.resume;
    segment.entry_layer = own.entry_layer;
    segment.entry = own.entry.get();
    if (own.routing != nullptr) {
      auto routing = model.PlaceRouting(*own.routing);
      if (!routing.ok()) return routing.status();
      placed.push_back(*std::move(routing));
      segment.routing = placed.back().get();
    }
    segment.override_start = own.override_start;
    segment.override_end = own.override_end;
    segment.readout.logits = own.want_logits;
    segment.want_capture = own.want_capture;
    segment.want_routes = own.want_routes;
    segment.experts_per_token = own.experts_per_token;
    segment.state_layer = own.state_layer;
    segment.mean_layer = own.mean_layer;
    segment.state_sum = own.state_sum != nullptr ? own.state_sum : &sums[segments.size()];
    segments.push_back(segment);
  }
  std::vector<SegmentOutput> outputs;
  const absl::Status status = model.Forward(segments, outputs);
  if (!status.ok()) return status;
  return outputs;
}

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_OWNED_SEGMENT_H_
