#ifndef C3PO_INDEX_SEARCH_METADATA_INDEX_H_
#define C3PO_INDEX_SEARCH_METADATA_INDEX_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/container/node_hash_map.h"
#include "index/base/mutex.h"
#include "index/search/label_filter.h"
#include "index/types/metadata_filter.h"
#include "index/types/reference_record.h"

namespace c3po {

// The references of a collection by their metadata: which of them match a filter, and so how many, without a look at
// any reference. Each has a place, a small number that is given anew once it is free. Of each key there are its values,
// of each value the places that have it, and values that are numbers (DecimalNumber) are ordered as well. A filter is
// evaluated over sets of places, a bit each: a condition takes a look-up for each of its values (of a range, a walk
// over the values inside), then a visit of each place that it holds for; must, should and must_not are operations on
// whole words.
//
// The last kKeptFilters filters that were asked for are kept with what they found, until the next change: servers are
// asked again and again under few filters, such as one of each tenant.
//
// Memory: about 30 bytes a reference, 10 for each of its entries, 170 and the text for each different value of a key,
// and 8 for each reference that a kept filter admits.
//
// Changes need the owner's lock; Find may run beside others of its kind.
class MetadataIndex {
 public:
  static constexpr size_t kKeptFilters = 8;

  // A label is added once, and removed with the record that it was added with.
  void Add(int64_t label, const ReferenceRecord& record);
  void Remove(int64_t label, const ReferenceRecord& record);

  // The labels of the references that match (Matches of metadata_filter.h), of successful ones alone or of all.
  // `filter` has passed ValidateFilter.
  std::shared_ptr<const LabelFilter> Find(const MetadataFilter& filter, bool successful_only) const;

  // An estimate, by the formula above.
  int64_t MemoryBytes() const;

 private:
  using Places = absl::flat_hash_set<uint32_t>;
  using Bits = std::vector<uint64_t>;  // a bit a place
  struct Key {
    absl::node_hash_map<std::string, Places> values;  // none of them empty
    // Of the values that are numbers; several texts may be one number.
    std::set<std::pair<double, const Places*>> numbers;
  };
  struct Kept {
    std::string filter;  // FilterText
    bool successful_only = false;
    std::shared_ptr<const LabelFilter> labels;
  };

  static void Set(Bits& bits, uint32_t place, bool value);
  static void SetAll(Bits& bits, const Places& places);
  Bits None() const { return Bits(members_.size(), 0); }
  Bits Evaluate(const MetadataFilter& filter) const;
  // Adds the places that a condition holds for.
  void AddHolding(const MetadataCondition& condition, Bits& bits) const;
  static void AddInRange(const Key& key, const MetadataRange& range, Bits& bits);
  std::shared_ptr<const LabelFilter> LabelsOf(const Bits& bits) const;
  void Forget();

  absl::flat_hash_map<std::string, Key> keys_;
  absl::flat_hash_map<int64_t, uint32_t> place_of_label_;
  std::vector<int64_t> label_of_place_;
  std::vector<uint32_t> free_places_;
  Bits members_, successful_;
  size_t entries_ = 0, values_ = 0, text_bytes_ = 0;  // of all references; of all keys, and their texts

  mutable std::unique_ptr<Mutex> kept_mutex_ = std::make_unique<Mutex>();
  mutable std::vector<Kept> kept_;  // Guarded by *kept_mutex_. Least recently asked for first.
};

}  // namespace c3po

#endif  // C3PO_INDEX_SEARCH_METADATA_INDEX_H_
