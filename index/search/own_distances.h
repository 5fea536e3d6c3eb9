#ifndef C3PO_INDEX_SEARCH_OWN_DISTANCES_H_
#define C3PO_INDEX_SEARCH_OWN_DISTANCES_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "index/types/reference_record.h"

namespace c3po {

// How far the members of a view are from their nearest other member (leave-one-out): what the distance of a request
// from its nearest reference is judged by. Kept for the kSampleMax members with the smallest labels. Labels are hashes
// of ids, so these are a uniform sample, and the same one in whatever order members came and went.
//
// A value without locks: its owner replaces it by Refreshed after every change.
class OwnDistances {
 public:
  static constexpr size_t kSampleMax = 512;
  // Others at most this far are the same prompt again, with another answer say, and tell nothing of how prompts lie.
  static constexpr float kSameEmbedding = 1e-3f;

  struct Member {
    int64_t label = 0;
    std::shared_ptr<const ReferenceRecord> record;
  };
  // A member's nearest other; `member.record` is null where it has none.
  struct Nearest {
    Member member;
    float distance = 0;  // Euclidean, > kSameEmbedding.
  };

  // The distances after a change, from those before it. `sample`: the kSampleMax members with the smallest labels, or
  // all of fewer. `arrivals`: what the change added. `is_member`: whether a member of before still is one. `search`
  // finds the nearest other of each of its members among all, in their order. It is called once, with the new members
  // of the sample and those whose nearest other is gone, or not at all where there are none. Every other one is
  // compared with the arrivals: kSampleMax * arrivals distances in all.
  static OwnDistances Refreshed(const OwnDistances& before, absl::Span<const Member> sample,
                                absl::Span<const Member> arrivals, absl::FunctionRef<bool(const Member&)> is_member,
                                absl::FunctionRef<std::vector<Nearest>(absl::Span<const Member>)> search);

  // The least of `distances` that at least the share `quantile`, in (0, 1], of them does not exceed; nothing of none.
  static std::optional<double> QuantileOf(std::vector<float> distances, double quantile);

  // The least distance d such that at least the share `quantile`, in (0, 1], of the sampled members have their nearest
  // other within d. Nothing where no member has one.
  std::optional<double> Quantile(double quantile) const;

 private:
  struct Entry {
    Member member;
    Nearest nearest;
  };
  std::vector<Entry> entries_;  // By ascending label.
};

}  // namespace c3po

#endif  // C3PO_INDEX_SEARCH_OWN_DISTANCES_H_
