#include "index/search/cuda/device_index.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr size_t kFoundMax = size_t{1} << 21;  // Of one batch: 32 MB.
constexpr int64_t kVisitedBytesMax = int64_t{64}
                                     << 20;  // Of one batch, where visited nodes do not fit in shared memory.

static_assert(HnswIndex::kFilteredCandidatesMax <= cuda::kBeamWidthMax, "a filter's search is the device's");

int64_t Aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }

RowShape ShapeOf(int dimension, bool graph, int64_t halves_from) {
  RowShape shape;
  shape.dimension = dimension;
  shape.reuse_rows = !graph;
  shape.halves_from = halves_from;
  return shape;
}

}  // namespace

bool DeviceIndex::Fits(const IndexDevice& device, int dimension) {
  return ShapeOf(dimension, false, 0).Fits(device.properties());
}

absl::StatusOr<std::unique_ptr<DeviceIndex>> DeviceIndex::Create(IndexDevice* device, std::unique_ptr<ExactIndex>& host,
                                                                 absl::Span<const LabeledVector> vectors,
                                                                 int64_t halves_from) {
  const int dimension = host->dimension();
  std::unique_ptr<DeviceIndex> index(new DeviceIndex(device, HnswOptions()));
  C3PO_ASSIGN_OR_RETURN(index->rows_, DeviceRows::Create(device, ShapeOf(dimension, false, halves_from)));
  std::vector<NewRow> rows;
  rows.reserve(vectors.size());
  for (const LabeledVector& each : vectors) rows.push_back({each.label, each.vector, 1});
  WriterLock lock(index->mutex_);
  IndexChange change(device);
  C3PO_RETURN_IF_ERROR(index->rows_->Add(change, rows));
  C3PO_RETURN_IF_ERROR(change.Finish(index->rows_->changed()));
  index->host_ = std::move(host);
  return index;
}

absl::StatusOr<std::unique_ptr<DeviceIndex>> DeviceIndex::Create(IndexDevice* device, std::unique_ptr<HnswIndex>& host,
                                                                 const HnswOptions& options) {
  const int dimension = host->dimension();
  C3PO_ASSIGN_OR_RETURN(const HnswGraph graph, host->CopyGraph());
  std::unique_ptr<DeviceIndex> index(new DeviceIndex(device, options));
  C3PO_ASSIGN_OR_RETURN(index->rows_, DeviceRows::Create(device, ShapeOf(dimension, true, 0)));
  index->graph_ = std::make_unique<DeviceGraph>(device, options.m);
  WriterLock lock(index->mutex_);
  IndexChange change(device);
  C3PO_RETURN_IF_ERROR(index->graph_->Load(change, graph));
  C3PO_RETURN_IF_ERROR(index->rows_->Reserve(change, static_cast<int64_t>(graph.labels.size())));
  const auto width = static_cast<size_t>(dimension);
  for (size_t node = 0; node < graph.labels.size(); ++node) {
    const NewRow row = {graph.labels[node], absl::MakeConstSpan(graph.vectors).subspan(node * width, width), 1};
    C3PO_RETURN_IF_ERROR(index->rows_->Add(change, {&row, 1}));
    if (graph.removed[node] != 0) index->rows_->Remove(change, graph.labels[node]);
  }
  C3PO_RETURN_IF_ERROR(change.Finish(index->rows_->changed()));
  index->graph_host_ = host.get();
  index->host_ = std::move(host);
  return index;
}

// Room first, so that a vector that has no place on the device is not added on the host either. Linking takes long: it
// is done without the lock, and searches go on.
absl::Status DeviceIndex::Add(int64_t label, absl::Span<const float> vector) {
  MutexLock changing(change_mutex_);
  if (on_device()) {
    const absl::Status room = MakeRoom();
    if (!room.ok() && !absl::IsUnavailable(room)) return room;
  }
  HnswAddition addition;
  if (graph_host_ != nullptr) {
    C3PO_RETURN_IF_ERROR(graph_host_->AddAndTrace(label, vector, &addition));
  } else {
    C3PO_RETURN_IF_ERROR(host_->Add(label, vector));
  }
  if (!on_device()) return absl::OkStatus();
  const absl::Status added = AddOnDevice(label, vector, addition);
  if (!added.ok()) on_device_.store(false);
  return absl::OkStatus();
}

absl::Status DeviceIndex::MakeRoom() {
  {
    ReaderLock lock(mutex_);
    if (rows_->HasRoom() && (graph_ == nullptr || graph_->HasRoom())) return absl::OkStatus();
  }
  WriterLock lock(mutex_);
  IndexChange change(device_);
  absl::Status room = rows_->Reserve(change, rows_->rows() + 1);
  if (room.ok() && graph_ != nullptr) room = graph_->Reserve(change, graph_->nodes() + 1);
  const absl::Status finished = change.Finish(rows_->changed());
  return room.ok() ? finished : room;
}

absl::Status DeviceIndex::AddOnDevice(int64_t label, absl::Span<const float> vector, const HnswAddition& addition) {
  WriterLock lock(mutex_);
  IndexChange change(device_);
  if (graph_ != nullptr) C3PO_RETURN_IF_ERROR(graph_->Add(change, addition));
  const NewRow row = {label, vector, 1};
  C3PO_RETURN_IF_ERROR(rows_->Add(change, {&row, 1}));
  return change.Finish(rows_->changed());
}

absl::Status DeviceIndex::Remove(int64_t label) {
  MutexLock changing(change_mutex_);
  C3PO_RETURN_IF_ERROR(host_->Remove(label));
  if (!on_device()) return absl::OkStatus();
  WriterLock lock(mutex_);
  IndexChange change(device_);
  rows_->Remove(change, label);
  if (!change.Finish(rows_->changed()).ok()) on_device_.store(false);
  return absl::OkStatus();
}

// A batch that the device has no answer for is the host's, as a whole: all queries see one state of the index.
absl::StatusOr<std::vector<std::vector<LabeledDistance>>> DeviceIndex::FindNearest(absl::Span<const float> queries,
                                                                                   int k,
                                                                                   const LabelFilter* filter) const {
  if (on_device()) {
    absl::StatusOr<std::vector<std::vector<LabeledDistance>>> found = FindOnDevice(queries, k, filter);
    if (found.ok()) return found;
  }
  device_->CountQueries(0, static_cast<int64_t>(queries.size()) / dimension(), 0);
  return host_->SearchMany(queries, k, filter);
}

absl::StatusOr<std::vector<std::vector<LabeledDistance>>> DeviceIndex::FindOnDevice(absl::Span<const float> queries,
                                                                                    int k,
                                                                                    const LabelFilter* filter) const {
  const auto width = static_cast<size_t>(dimension());
  const size_t at_once = std::clamp<size_t>(kFoundMax / static_cast<size_t>(k), 1, DeviceRows::kQueriesMax) * width;
  C3PO_ASSIGN_OR_RETURN(const IndexDevice::Lease slot, device_->AcquireSlot());
  if (queries.size() <= at_once) {
    Batch batch;
    {
      ReaderLock lock(mutex_);
      C3PO_ASSIGN_OR_RETURN(batch, Enqueue(*slot, queries, k, rows_->Admit(filter, 0), 1));
    }
    C3PO_ASSIGN_OR_RETURN(Answers answers, Collect(*slot, batch));
    if (answers.unanswered.empty()) return std::move(answers.found);
  }
  // Several rounds see one state under one lock: changes wait for their ends.
  std::vector<std::vector<LabeledDistance>> all;
  ReaderLock lock(mutex_);
  const DeviceRows::Admitted admitted = rows_->Admit(filter, 0);
  for (size_t first = 0; first < queries.size(); first += at_once) {
    C3PO_ASSIGN_OR_RETURN(Answers answers, FindWidening(*slot, queries.subspan(first, at_once), k, admitted));
    std::move(answers.found.begin(), answers.found.end(), std::back_inserter(all));
  }
  return all;
}

// As HnswIndex does: whose candidates had too few live ones asks for twice as many, until all nodes are compared.
absl::StatusOr<DeviceIndex::Answers> DeviceIndex::FindWidening(SearchSlot& slot, absl::Span<const float> queries, int k,
                                                               const DeviceRows::Admitted& admitted) const {
  const auto width = static_cast<size_t>(dimension());
  C3PO_ASSIGN_OR_RETURN(const Batch batch, Enqueue(slot, queries, k, admitted, 1));
  C3PO_ASSIGN_OR_RETURN(Answers answers, Collect(slot, batch));
  for (size_t widening = 2; !answers.unanswered.empty(); widening *= 2) {
    std::vector<float> left;
    for (const size_t query : answers.unanswered) {
      const auto row = queries.subspan(query * width, width);
      left.insert(left.end(), row.begin(), row.end());
    }
    C3PO_ASSIGN_OR_RETURN(const Batch wider, Enqueue(slot, left, k, admitted, widening));
    C3PO_ASSIGN_OR_RETURN(Answers more, Collect(slot, wider));
    std::vector<size_t> still;
    for (size_t i = 0; i < answers.unanswered.size(); ++i) {
      answers.found[answers.unanswered[i]] = std::move(more.found[i]);
    }
    for (const size_t i : more.unanswered) still.push_back(answers.unanswered[i]);
    answers.unanswered = std::move(still);
  }
  return answers;
}

absl::StatusOr<DeviceIndex::Batch> DeviceIndex::Enqueue(SearchSlot& slot, absl::Span<const float> queries, int k,
                                                        const DeviceRows::Admitted& admitted, size_t widening) const {
  Batch batch;
  batch.queries = queries;
  batch.k = static_cast<int>(std::min<int64_t>(k, admitted.count));
  if (batch.k == 0) return batch;
  if (graph_ != nullptr) {
    const auto nodes = static_cast<size_t>(rows_->rows());
    const auto live = static_cast<size_t>(admitted.count);
    const size_t candidates = widening * HnswIndex::Candidates(static_cast<size_t>(batch.k), options_, nodes, live);
    if (HnswIndex::AsksGraph(candidates, nodes, live, admitted.filtered)) {
      if (candidates > static_cast<size_t>(cuda::kBeamWidthMax)) {
        return absl::OutOfRangeError("index device: too many candidates");
      }
      batch.candidates = static_cast<int>(candidates);
      C3PO_RETURN_IF_ERROR(EnqueueBeam(slot, batch, admitted));
      return batch;
    }
  }
  if (!DeviceRows::CanFind(batch.k)) return absl::OutOfRangeError("index device: k is too large");
  const int whole[] = {0};
  C3PO_ASSIGN_OR_RETURN(batch.scan, rows_->EnqueueScan(slot, queries, whole, batch.k, admitted));
  return batch;
}

// In: the queries, padded, and a filter's bits. Out: k found rows of each, then how many live candidates each had. The
// device's work space has a bit a node where shared memory has no room for it.
absl::Status DeviceIndex::EnqueueBeam(SearchSlot& slot, const Batch& batch,
                                      const DeviceRows::Admitted& admitted) const {
  const auto width = static_cast<size_t>(dimension());
  const auto count = static_cast<int64_t>(batch.queries.size() / width);
  cuda::BeamArgs args;
  graph_->Describe(args);
  args.rows = rows_->memory()->rows.as<float>();
  args.labels = rows_->memory()->labels.as<int64_t>();
  args.row_stride = args.query_stride = rows_->row_stride();
  args.dimension = dimension();
  args.ef = batch.candidates;
  args.k = batch.k;
  args.visited_words = cuda::BeamVisitedWords(args.node_count);
  const int64_t shared = cuda::BeamSharedBytes(args.query_stride, args.ef, args.links_max);
  const int64_t shared_max = device_->properties().shared_bytes_per_block;
  if (shared > shared_max) return absl::OutOfRangeError("index device: a beam does not fit into shared memory");
  const bool visited_in_shared = shared + int64_t{4} * args.visited_words <= shared_max;
  const int64_t visited_bytes = int64_t{4} * args.visited_words;
  const int64_t at_once = visited_in_shared ? count : std::clamp<int64_t>(kVisitedBytesMax / visited_bytes, 1, count);
  const int64_t words_at = Aligned(count * args.query_stride * 4);
  const int64_t in_bytes = words_at + Aligned(admitted.bytes());
  const int64_t counts_at = Aligned(count * batch.k * static_cast<int64_t>(sizeof(cuda::FoundRow)));
  C3PO_RETURN_IF_ERROR(slot.Reserve(in_bytes, counts_at + count * 4, visited_in_shared ? 0 : at_once * visited_bytes));
  std::memset(slot.in(), 0, static_cast<size_t>(in_bytes));
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(slot.in() + i * args.query_stride * 4, batch.queries.data() + static_cast<size_t>(i) * width,
                width * 4);
  }
  std::copy(admitted.words.begin(), admitted.words.end(), reinterpret_cast<uint32_t*>(slot.in() + words_at));
  struct Held {
    std::shared_ptr<const DeviceRows::Memory> rows;
    std::shared_ptr<const DeviceGraph::Memory> graph;
  };
  auto held = std::make_shared<Held>(Held{rows_->memory(), graph_->memory()});
  C3PO_RETURN_IF_ERROR(slot.SendIn(in_bytes, rows_->changed(), std::move(held)));
  args.admitted = rows_->WordsOf(admitted, slot.device_in() + words_at);
  args.visited = visited_in_shared ? nullptr : reinterpret_cast<uint32_t*>(slot.work());
  for (int64_t first = 0; first < count; first += at_once) {
    args.queries = reinterpret_cast<const float*>(slot.device_in()) + first * args.query_stride;
    args.query_count = static_cast<int>(std::min(at_once, count - first));
    args.found = reinterpret_cast<cuda::FoundRow*>(slot.device_out()) + first * batch.k;
    args.counts = reinterpret_cast<uint32_t*>(slot.device_out() + counts_at) + first;
    C3PO_RETURN_IF_ERROR(device_->Check(device_->kernels().beam_search(args, slot.stream())));
  }
  return slot.FetchOut(counts_at + count * 4);
}

absl::StatusOr<DeviceIndex::Answers> DeviceIndex::Collect(SearchSlot& slot, const Batch& batch) const {
  const size_t count = batch.queries.size() / static_cast<size_t>(dimension());
  Answers answers;
  answers.found.resize(count);
  if (batch.k == 0) return answers;
  C3PO_RETURN_IF_ERROR(slot.Wait());
  if (batch.candidates == 0) {
    C3PO_ASSIGN_OR_RETURN(answers.found, rows_->ReadFound(slot, batch.scan));
    return answers;
  }
  const auto* found = reinterpret_cast<const cuda::FoundRow*>(slot.out());
  const int64_t counts_at =
      Aligned(static_cast<int64_t>(count) * batch.k * static_cast<int64_t>(sizeof(cuda::FoundRow)));
  const auto* counts = reinterpret_cast<const uint32_t*>(slot.out() + counts_at);
  for (size_t i = 0; i < count; ++i, found += batch.k) {
    if (counts[i] < static_cast<uint32_t>(batch.k)) {
      answers.unanswered.push_back(i);
      continue;
    }
    for (int j = 0; j < batch.k; ++j) {
      float squared = 0;
      std::memcpy(&squared, &found[j].squared, sizeof(squared));
      answers.found[i].push_back({found[j].label, std::sqrt(squared)});
    }
  }
  device_->CountQueries(static_cast<int64_t>(count - answers.unanswered.size()), 0, 0);
  return answers;
}

}  // namespace c3po
