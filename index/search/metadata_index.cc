#include "index/search/metadata_index.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <optional>

namespace c3po {
namespace {

constexpr size_t kPlacesOfWord = 64;

}  // namespace

void MetadataIndex::Set(Bits& bits, uint32_t place, bool value) {
  const uint64_t bit = uint64_t{1} << (place % kPlacesOfWord);
  uint64_t& word = bits[place / kPlacesOfWord];
  word = value ? word | bit : word & ~bit;
}

void MetadataIndex::SetAll(Bits& bits, const Places& places) {
  for (const uint32_t place : places) Set(bits, place, true);
}

void MetadataIndex::Add(int64_t label, const ReferenceRecord& record) {
  uint32_t place = static_cast<uint32_t>(label_of_place_.size());
  if (free_places_.empty()) {
    label_of_place_.push_back(label);
    members_.resize((label_of_place_.size() + kPlacesOfWord - 1) / kPlacesOfWord, 0);
    successful_.resize(members_.size(), 0);
  } else {
    place = free_places_.back();
    free_places_.pop_back();
    label_of_place_[place] = label;
  }
  place_of_label_[label] = place;
  Set(members_, place, true);
  Set(successful_, place, record.successful);
  for (const auto& [name, text] : record.sample.metadata) {
    Key& key = keys_[name];
    const auto [value, is_new] = key.values.try_emplace(text);
    value->second.insert(place);
    ++entries_;
    if (!is_new) continue;
    ++values_;
    text_bytes_ += text.size();
    if (const auto number = DecimalNumber(text)) key.numbers.emplace(*number, &value->second);
  }
  Forget();
}

void MetadataIndex::Remove(int64_t label, const ReferenceRecord& record) {
  const auto found = place_of_label_.find(label);
  if (found == place_of_label_.end()) return;
  const uint32_t place = found->second;
  place_of_label_.erase(found);
  free_places_.push_back(place);
  Set(members_, place, false);
  Set(successful_, place, false);
  for (const auto& [name, text] : record.sample.metadata) {
    const auto key = keys_.find(name);
    if (key == keys_.end()) continue;
    const auto value = key->second.values.find(text);
    if (value == key->second.values.end()) continue;
    entries_ -= value->second.erase(place);
    if (!value->second.empty()) continue;
    if (const auto number = DecimalNumber(text)) key->second.numbers.erase({*number, &value->second});
    --values_;
    text_bytes_ -= text.size();
    key->second.values.erase(value);
    if (key->second.values.empty()) keys_.erase(key);
  }
  Forget();
}

void MetadataIndex::Forget() {
  const MutexLock lock(*kept_mutex_);
  kept_.clear();
}

// Values from the greater of the lower ends on, until one lies beyond the lesser of the upper ends.
void MetadataIndex::AddInRange(const Key& key, const MetadataRange& range, Bits& bits) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const double low = std::max(range.gt.value_or(-kInfinity), range.gte.value_or(-kInfinity));
  const double high = std::min(range.lt.value_or(kInfinity), range.lte.value_or(kInfinity));
  for (auto each = key.numbers.lower_bound({low, nullptr}); each != key.numbers.end(); ++each) {
    const auto& [number, places] = *each;
    if (number > high) break;
    if (range.Holds(number)) SetAll(bits, *places);
  }
}

void MetadataIndex::AddHolding(const MetadataCondition& condition, Bits& bits) const {
  if (!condition.filter.empty()) {
    const Bits matching = Evaluate(condition.filter.front());
    for (size_t w = 0; w < bits.size(); ++w) bits[w] |= matching[w];
    return;
  }
  const auto found = keys_.find(condition.key);
  if (condition.exists) {
    Bits present = None();
    if (found != keys_.end()) {
      for (const auto& [text, places] : found->second.values) SetAll(present, places);
    }
    for (size_t w = 0; w < bits.size(); ++w) bits[w] |= *condition.exists ? present[w] : members_[w] & ~present[w];
    return;
  }
  if (found == keys_.end()) return;
  const Key& key = found->second;
  if (condition.range) return AddInRange(key, *condition.range, bits);
  const auto add = [&](const std::string& text) {
    const auto value = key.values.find(text);
    if (value != key.values.end()) SetAll(bits, value->second);
  };
  if (condition.equals) add(*condition.equals);
  for (const std::string& text : condition.in) add(text);
}

MetadataIndex::Bits MetadataIndex::Evaluate(const MetadataFilter& filter) const {
  Bits matching = members_;
  for (const MetadataCondition& condition : filter.must) {
    Bits holding = None();
    AddHolding(condition, holding);
    for (size_t w = 0; w < matching.size(); ++w) matching[w] &= holding[w];
  }
  Bits any = None();
  for (const MetadataCondition& condition : filter.should) AddHolding(condition, any);
  Bits unwanted = None();
  for (const MetadataCondition& condition : filter.must_not) AddHolding(condition, unwanted);
  for (size_t w = 0; w < matching.size(); ++w) {
    matching[w] &= ~unwanted[w];
    if (!filter.should.empty()) matching[w] &= any[w];
  }
  return matching;
}

std::shared_ptr<const LabelFilter> MetadataIndex::LabelsOf(const Bits& bits) const {
  size_t count = 0;
  for (const uint64_t word : bits) count += static_cast<size_t>(std::popcount(word));
  std::vector<int64_t> labels;
  labels.reserve(count);
  for (size_t w = 0; w < bits.size(); ++w) {
    for (uint64_t left = bits[w]; left != 0; left &= left - 1) {
      labels.push_back(label_of_place_[w * kPlacesOfWord + static_cast<size_t>(std::countr_zero(left))]);
    }
  }
  return std::make_shared<const LabelFilter>(std::move(labels));
}

std::shared_ptr<const LabelFilter> MetadataIndex::Find(const MetadataFilter& filter, bool successful_only) const {
  std::string text = FilterText(filter);
  {
    const MutexLock lock(*kept_mutex_);
    const auto kept = std::find_if(kept_.begin(), kept_.end(), [&](const Kept& each) {
      return each.successful_only == successful_only && each.filter == text;
    });
    if (kept != kept_.end()) {
      std::rotate(kept, kept + 1, kept_.end());
      return kept_.back().labels;
    }
  }
  Bits matching = Evaluate(filter);
  for (size_t w = 0; successful_only && w < matching.size(); ++w) matching[w] &= successful_[w];
  std::shared_ptr<const LabelFilter> labels = LabelsOf(matching);
  const MutexLock lock(*kept_mutex_);
  if (kept_.size() == kKeptFilters) kept_.erase(kept_.begin());
  kept_.push_back({std::move(text), successful_only, labels});
  return labels;
}

int64_t MetadataIndex::MemoryBytes() const {
  constexpr size_t kOfReference = 30, kOfEntry = 10, kOfValue = 170;
  size_t bytes = kOfReference * label_of_place_.size() + kOfEntry * entries_ + kOfValue * values_ + text_bytes_;
  const MutexLock lock(*kept_mutex_);
  for (const Kept& each : kept_) bytes += each.filter.size() + sizeof(int64_t) * each.labels->labels().size();
  return static_cast<int64_t>(bytes);
}

}  // namespace c3po
