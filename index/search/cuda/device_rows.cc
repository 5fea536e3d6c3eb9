#include "index/search/cuda/device_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr int64_t kFirstCapacity = 256;            // Rows.
constexpr int64_t kTwoBlocksBytes = 100 * 1024;    // Of shared memory, so that two blocks share a multiprocessor.
constexpr int64_t kMergedEntriesMax = 128 * 1024;  // Of all blocks' lists of a query: what its merge reads.
constexpr int kQueriesOfLaunch = 64;               // More go in turn, with the same work space.
constexpr double kHalfMax = 65504;                 // The largest number of float16.
constexpr double kSafety = 1 + 0x1p-20;            // scan.h: covers the roundings of the comparison itself.

int64_t Aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }

int KeptOf(int k) { return std::max(k + 32, 2 * k); }

// scan.h's rounding bound g of a float16 scan.
double RoundingBound(int half_stride) {
  const double n = half_stride / 8 + 48;
  return n * 0x1p-24 / (1 - n * 0x1p-24);
}

}  // namespace

bool RowShape::Fits(const cuda::DeviceProperties& properties) const {
  const int64_t width = int64_t{segments} * cuda::RoundUp(dimension, 4);
  const int64_t padded = cuda::RoundUp(static_cast<int>(std::min<int64_t>(width, 1 << 20)), cuda::kHalfRowMultiple);
  return dimension >= 1 && segments >= 1 && padded <= cuda::kScanWidthMax &&
         cuda::ScanQueriesAtOnce(1, static_cast<int>(padded), cuda::kScanNeighborsMax,
                                 properties.shared_bytes_per_block) > 0;
}

DeviceRows::DeviceRows(IndexDevice* device, const RowShape& shape)
    : device_(device),
      shape_(shape),
      segment_stride_(cuda::RoundUp(shape.dimension, 4)),
      row_stride_(shape.segments * segment_stride_),
      half_stride_(cuda::RoundUp(shape.dimension, cuda::kHalfRowMultiple)),
      admitted_counts_(static_cast<size_t>(shape.views)) {}

absl::StatusOr<std::unique_ptr<DeviceRows>> DeviceRows::Create(IndexDevice* device, const RowShape& shape) {
  std::unique_ptr<DeviceRows> rows(new DeviceRows(device, shape));
  C3PO_ASSIGN_OR_RETURN(rows->changed_, device->NewEvent());
  return rows;
}

absl::Status DeviceRows::Reserve(IndexChange& change, int64_t count) {
  if (count <= capacity_) return absl::OkStatus();
  const int64_t doubled = std::max({kFirstCapacity, 2 * capacity_, (count + 31) / 32 * 32});
  if (doubled > cuda::kBeamNodesMax) return absl::ResourceExhaustedError("index device: too many rows of one index");
  return Grow(change, doubled);
}

// Searches under way go on in the old memory, which the last of them gives back.
absl::Status DeviceRows::Grow(IndexChange& change, int64_t capacity) {
  auto grown = std::make_shared<Memory>();
  const bool halves = shape_.halves_from > 0 && shape_.segments == 1 && capacity >= shape_.halves_from;
  const int64_t words = capacity / 32, old_words = capacity_ / 32;
  C3PO_ASSIGN_OR_RETURN(grown->rows, device_->Allocate(capacity * row_stride_ * 4));
  C3PO_ASSIGN_OR_RETURN(grown->labels, device_->Allocate(capacity * 8));
  C3PO_ASSIGN_OR_RETURN(grown->admitted, device_->Allocate(words * 4 * shape_.views));
  if (halves) {
    C3PO_ASSIGN_OR_RETURN(grown->halves, device_->Allocate(capacity * half_stride_ * 2));
  }
  change.Fill(grown->admitted.as<void>(), 0, words * 4 * shape_.views);
  if (memory_ != nullptr) {
    change.Copy(grown->rows.as<void>(), memory_->rows.as<void>(), row_count_ * row_stride_ * 4);
    change.Copy(grown->labels.as<void>(), memory_->labels.as<void>(), row_count_ * 8);
    for (int view = 0; view < shape_.views; ++view) {
      change.Copy(grown->admitted.as<uint32_t>() + words * view, memory_->admitted.as<uint32_t>() + old_words * view,
                  old_words * 4);
    }
  }
  const bool had_halves = memory_ != nullptr && memory_->halves.bytes() > 0;
  if (halves && had_halves) {
    change.Copy(grown->halves.as<void>(), memory_->halves.as<void>(), row_count_ * half_stride_ * 2);
  }
  memory_ = std::move(grown);
  capacity_ = capacity;
  if (halves && !had_halves) NarrowRows(change, 0, row_count_);
  return absl::OkStatus();
}

void DeviceRows::NarrowRows(IndexChange& change, int64_t first, int64_t count) const {
  cuda::NarrowArgs args;
  args.rows = memory_->rows.as<float>();
  args.row_stride = row_stride_;
  args.dimension = shape_.dimension;
  args.halves = memory_->halves.as<uint16_t>();
  args.half_stride = half_stride_;
  args.first_row = static_cast<int>(first);
  args.row_count = static_cast<int>(count);
  change.Narrow(args);
}

// Removed places are taken first, those of the highest numbers before others.
absl::Status DeviceRows::Add(IndexChange& change, absl::Span<const NewRow> rows) {
  if (rows.empty()) return absl::OkStatus();
  const auto reused = shape_.reuse_rows ? std::min(free_rows_.size(), rows.size()) : size_t{0};
  const auto appended = static_cast<int64_t>(rows.size() - reused);
  C3PO_RETURN_IF_ERROR(Reserve(change, row_count_ + appended));
  std::vector<int64_t> words;
  std::vector<int64_t> refilled;
  const int64_t first = row_count_;
  for (const NewRow& added : rows) {
    int64_t row = row_count_;
    if (refilled.size() < reused) {
      row = free_rows_.back();
      free_rows_.pop_back();
      refilled.push_back(row);
    } else {
      ++row_count_;
      views_.push_back(0);
    }
    PlaceRow(change, row, added);
    MarkViews(row, added.views, words);
  }
  WriteViews(change, words);
  if (memory_->halves.bytes() > 0) {
    for (const int64_t row : refilled) NarrowRows(change, row, 1);
    NarrowRows(change, first, row_count_ - first);
  }
  return absl::OkStatus();
}

void DeviceRows::PlaceRow(IndexChange& change, int64_t row, const NewRow& added) {
  row_of_label_[added.label] = row;
  std::vector<float> padded(static_cast<size_t>(row_stride_), 0.0f);
  double squares = 0;
  for (int segment = 0; segment < shape_.segments; ++segment) {
    for (int i = 0; i < shape_.dimension; ++i) {
      const float value = added.row[static_cast<size_t>(segment * shape_.dimension + i)];
      padded[static_cast<size_t>(segment * segment_stride_ + i)] = value;
      squares += double{value} * value;
      narrowable_ = narrowable_ && std::abs(double{value}) <= kHalfMax;
    }
  }
  longest_ = std::max(longest_, std::sqrt(squares));
  change.Write(memory_->rows.as<float>() + row * row_stride_, padded.data(), padded.size());
  change.Write(memory_->labels.as<int64_t>() + row, &added.label, 2);
}

// Changes the host's bits, and notes which words of the device's they are in.
void DeviceRows::MarkViews(int64_t row, uint32_t views, std::vector<int64_t>& words) {
  uint32_t& now = views_[static_cast<size_t>(row)];
  for (int view = 0; view < shape_.views; ++view) {
    const int before = now >> view & 1, after = views >> view & 1;
    admitted_counts_[static_cast<size_t>(view)] += after - before;
  }
  now = views;
  words.push_back(row / 32);
}

void DeviceRows::WriteViews(IndexChange& change, std::vector<int64_t>& words) {
  std::sort(words.begin(), words.end());
  words.erase(std::unique(words.begin(), words.end()), words.end());
  for (int view = 0; view < shape_.views; ++view) {
    for (const int64_t word : words) {
      uint32_t bits = 0;
      for (int64_t row = 32 * word; row < std::min(row_count_, 32 * word + 32); ++row) {
        bits |= (views_[static_cast<size_t>(row)] >> view & 1) << (row % 32);
      }
      change.Write(memory_->admitted.as<uint32_t>() + capacity_ / 32 * view + word, &bits, 1);
    }
  }
  change.Flush();  // A later change of the same words goes behind.
}

void DeviceRows::Remove(IndexChange& change, int64_t label) {
  const auto found = row_of_label_.find(label);
  const int64_t row = found->second;
  row_of_label_.erase(found);
  std::vector<int64_t> words;
  MarkViews(row, 0, words);
  WriteViews(change, words);
  if (shape_.reuse_rows) free_rows_.push_back(row);
}

void DeviceRows::SetViews(IndexChange& change, int64_t label, uint32_t views) {
  std::vector<int64_t> words;
  MarkViews(row_of_label_.find(label)->second, views, words);
  WriteViews(change, words);
}

// Where the bound decided nothing for most queries so far, the float16 scan only costs.
bool DeviceRows::UsesHalves(absl::Span<const int> segments, int k) const {
  const int64_t tried = half_queries_.load();
  return memory_->halves.bytes() > 0 && narrowable_ && segments.size() == 1 && k <= cuda::kHalfNeighborsMax &&
         !(tried >= 64 && 2 * unproven_queries_.load() > tried);
}

// What a scan takes of a slot: where its parts are, and how many queries and blocks share the rows.
struct DeviceRows::ScanPlan {
  int query_stride = 0;
  int64_t queries_at = 0, starts_at = 0, words_at = 0;  // Of what is copied in; words: of a filter.
  int64_t in_bytes = 0;
  int64_t found_at = 0, unproven_at = 0, out_bytes = 0;  // Of what is copied out.
  int64_t lists_at = 0, half_lists_at = 0, work_bytes = 0;
  int queries_at_once = 1, half_queries_at_once = 1;
  int64_t blocks = 1, half_blocks = 1;
  bool halves = false;
};

// Enough to fill the device, fewer where many groups of queries do, or where merging many long lists would take longer.
int64_t DeviceRows::Blocks(int queries, int queries_at_once, int rows_of_step, int kept) const {
  const int64_t groups = (queries + queries_at_once - 1) / queries_at_once;
  const int64_t wanted = (2 * std::max(1, device_->properties().multiprocessors) + groups - 1) / groups;
  const int64_t steps = (row_count_ + rows_of_step - 1) / rows_of_step;
  return std::max<int64_t>(1, std::min({wanted, steps, std::max<int64_t>(16, kMergedEntriesMax / kept)}));
}

absl::StatusOr<DeviceRows::ScanPlan> DeviceRows::Plan(int queries, int segments, int k, bool halves) const {
  ScanPlan plan;
  plan.halves = halves;
  plan.query_stride = segments * segment_stride_;
  plan.starts_at = Aligned(int64_t{queries} * plan.query_stride * 4);
  plan.in_bytes = plan.starts_at + Aligned(int64_t{segments} * 4);
  plan.unproven_at = Aligned(int64_t{queries} * k * static_cast<int64_t>(sizeof(cuda::FoundRow)));
  plan.out_bytes = plan.unproven_at + (halves ? Aligned(int64_t{queries} * 4) : 0);
  const int64_t shared = device_->properties().shared_bytes_per_block;
  const auto at_once = [&](int floats, int kept) {
    const int chosen = cuda::ScanQueriesAtOnce(queries, floats, kept, std::min(shared, kTwoBlocksBytes));
    return chosen > 0 ? chosen : cuda::ScanQueriesAtOnce(1, floats, kept, shared);
  };
  const int together = std::min(queries, kQueriesOfLaunch);
  // scan.h's kernels: 16 rows a warp for one or two queries, 8 for more.
  const auto rows_of_step = [](int at_once) { return cuda::kScanThreads / 32 * (at_once <= 2 ? 16 : 8); };
  plan.queries_at_once = segments > 1 ? 1 : at_once(plan.query_stride, k);
  plan.blocks = Blocks(together, plan.queries_at_once, rows_of_step(plan.queries_at_once), k);
  plan.work_bytes = Aligned(together * plan.blocks * k * 8);
  if (halves) {
    plan.half_queries_at_once = at_once(half_stride_, KeptOf(k));
    plan.half_blocks = Blocks(together, plan.half_queries_at_once, rows_of_step(plan.half_queries_at_once), KeptOf(k));
    plan.half_lists_at = plan.work_bytes;
    plan.work_bytes += Aligned(together * plan.half_blocks * KeptOf(k) * 8);
  }
  if (plan.queries_at_once == 0 || plan.half_queries_at_once == 0) {
    return absl::ResourceExhaustedError("index device: a query does not fit into shared memory");
  }
  return plan;
}

DeviceRows::Admitted DeviceRows::Admit(const LabelFilter* filter, int view) const {
  Admitted admitted;
  admitted.view = view;
  admitted.count = admitted_counts_[static_cast<size_t>(view)];
  if (filter == nullptr) return admitted;
  admitted.filtered = true;
  admitted.count = 0;
  admitted.words.assign(static_cast<size_t>((row_count_ + 31) / 32), 0);
  for (const int64_t label : filter->labels()) {
    const auto found = row_of_label_.find(label);
    if (found == row_of_label_.end()) continue;
    const auto row = static_cast<size_t>(found->second);
    if ((views_[row] >> view & 1) == 0) continue;
    admitted.words[row / 32] |= 1u << (row % 32);
    ++admitted.count;
  }
  return admitted;
}

absl::StatusOr<DeviceRows::PendingScan> DeviceRows::EnqueueScan(SearchSlot& slot, absl::Span<const float> queries,
                                                                absl::Span<const int> segments, int k,
                                                                const Admitted& admitted) const {
  const size_t width = segments.size() * static_cast<size_t>(shape_.dimension);
  const int count = static_cast<int>(queries.size() / width);
  const bool halves = UsesHalves(segments, k);
  C3PO_ASSIGN_OR_RETURN(ScanPlan plan, Plan(count, static_cast<int>(segments.size()), k, halves));
  plan.words_at = plan.in_bytes;
  plan.in_bytes += Aligned(admitted.bytes());
  C3PO_RETURN_IF_ERROR(slot.Reserve(plan.in_bytes, plan.out_bytes, plan.work_bytes));
  std::memset(slot.in(), 0, static_cast<size_t>(plan.in_bytes));
  auto* padded = reinterpret_cast<float*>(slot.in());
  for (size_t from = 0; from < queries.size(); from += static_cast<size_t>(shape_.dimension)) {
    std::copy_n(queries.begin() + static_cast<std::ptrdiff_t>(from), shape_.dimension, padded);
    padded += segment_stride_;
  }
  auto* starts = reinterpret_cast<int32_t*>(slot.in() + plan.starts_at);
  for (size_t s = 0; s < segments.size(); ++s) starts[s] = segments[s] * segment_stride_;
  std::copy(admitted.words.begin(), admitted.words.end(), reinterpret_cast<uint32_t*>(slot.in() + plan.words_at));
  C3PO_RETURN_IF_ERROR(slot.SendIn(plan.in_bytes, changed_.get(), memory_));
  C3PO_RETURN_IF_ERROR(Launch(slot, plan, count, segments, k, admitted));
  C3PO_RETURN_IF_ERROR(slot.FetchOut(plan.out_bytes));
  return PendingScan{count, k, static_cast<int>(std::min<int64_t>(k, admitted.count)), halves};
}

absl::Status DeviceRows::Launch(SearchSlot& slot, const ScanPlan& plan, int queries, absl::Span<const int> segments,
                                int k, const Admitted& admitted) const {
  cuda::HalfScanArgs half;
  cuda::ScanArgs& scan = half.exact;
  scan.rows = memory_->rows.as<float>();
  scan.admitted = WordsOf(admitted, slot.device_in() + plan.words_at);
  scan.labels = memory_->labels.as<int64_t>();
  scan.row_count = static_cast<int>(row_count_);
  scan.row_stride = row_stride_;
  scan.segment_starts = reinterpret_cast<const int*>(slot.device_in() + plan.starts_at);
  scan.segments = static_cast<int>(segments.size());
  scan.dimension = shape_.dimension;
  scan.query_stride = plan.query_stride;
  scan.k = k;
  scan.blocks = static_cast<int>(plan.blocks);
  scan.queries_at_once = plan.queries_at_once;
  scan.list_entries = cuda::ScanListEntries(k);
  scan.lists = reinterpret_cast<uint64_t*>(slot.work() + plan.lists_at);
  if (plan.halves) {
    const double bound = RoundingBound(half_stride_);
    // |x - float16(x)| of a number is at most 2^-11 of it, or 2^-25 below the normal range.
    const double error = 0x1p-11 * longest_ * (1 + 1e-9) + std::sqrt(shape_.dimension) * 0x1p-25;
    half.halves = memory_->halves.as<uint16_t>();
    half.half_stride = half_stride_;
    half.kept = KeptOf(k);
    half.list_entries = cuda::ScanListEntries(half.kept);
    half.blocks = static_cast<int>(plan.half_blocks);
    half.queries_at_once = plan.half_queries_at_once;
    half.lists = reinterpret_cast<uint64_t*>(slot.work() + plan.half_lists_at);
    half.scale = static_cast<float>((1 - bound) / kSafety);
    half.margin = static_cast<float>((error + 2 * std::sqrt(shape_.dimension * 0x1p-146)) * kSafety);
  }
  for (int first = 0; first < queries; first += kQueriesOfLaunch) {
    scan.queries = reinterpret_cast<const float*>(slot.device_in()) + int64_t{first} * plan.query_stride;
    scan.query_count = std::min(kQueriesOfLaunch, queries - first);
    scan.found = reinterpret_cast<cuda::FoundRow*>(slot.device_out()) + int64_t{first} * k;
    if (plan.halves) {
      half.unproven = reinterpret_cast<uint32_t*>(slot.device_out() + plan.unproven_at) + first;
      scan.only = half.unproven;
      C3PO_RETURN_IF_ERROR(device_->Check(device_->kernels().half_scan(half, slot.stream())));
    } else {
      C3PO_RETURN_IF_ERROR(device_->Check(device_->kernels().scan(scan, slot.stream())));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::vector<LabeledDistance>>> DeviceRows::ReadFound(const SearchSlot& slot,
                                                                                const PendingScan& pending) const {
  const auto* found = reinterpret_cast<const cuda::FoundRow*>(slot.out());
  std::vector<std::vector<LabeledDistance>> nearest(static_cast<size_t>(pending.queries));
  for (std::vector<LabeledDistance>& each : nearest) {
    each.reserve(static_cast<size_t>(pending.expected));
    for (int i = 0; i < pending.expected; ++i) {
      float squared = 0;
      std::memcpy(&squared, &found[i].squared, sizeof(squared));
      if (!(squared >= 0)) return device_->Check("a scan found fewer rows than there are");
      each.push_back({found[i].label, std::sqrt(squared)});
    }
    found += pending.k;
  }
  int64_t unproven = 0;
  if (pending.halves) {
    const int64_t at = Aligned(int64_t{pending.queries} * pending.k * static_cast<int64_t>(sizeof(cuda::FoundRow)));
    const auto* marks = reinterpret_cast<const uint32_t*>(slot.out() + at);
    unproven = std::count(marks, marks + pending.queries, 1u);
    half_queries_ += pending.queries;
    unproven_queries_ += unproven;
  }
  device_->CountQueries(pending.queries, 0, unproven);
  return nearest;
}

}  // namespace c3po
