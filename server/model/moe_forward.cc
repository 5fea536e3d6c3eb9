// One forward pass over segments of many sequences: their rows are packed into one matrix, every projection, router and
// expert runs once over all of them, and only attention looks at one sequence at a time.
//
//   tokens -> embedding ┐
//   resumed entry state ┴-> layer: norm, q k v, write cache, attend -> norm, router (override), experts -> ... ->
//   logits
//
// Segments that resume enter at their own layer; they run as a batch of their own, grouped by that layer. A batch is
// enqueued whole, and what the host wants of it is read at its end.

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/compute/backend.h"
#include "server/model/moe_model.h"

namespace c3po {
namespace {

// The rows of one segment within the packed matrix.
struct RowSpan {
  const Segment* segment;
  SegmentOutput* output;
  int64_t first_row;
  int64_t rows;

  int64_t last_row() const { return first_row + rows - 1; }
};

absl::Status CheckSegment(const Segment& segment, const ModelShape& shape, int64_t slots) {
  const int64_t end = segment.start + static_cast<int64_t>(segment.tokens.size());
  int64_t room = 0;
  bool inside = true;
  for (const KvRun& run : segment.kv) {
    inside = inside && run.slot >= 0 && run.length > 0 && run.length <= slots - run.slot;
    room += run.length;
  }
  if (!inside || segment.tokens.empty() || segment.start < 0 || end > room || end > shape.context_window) {
    return absl::InternalError(absl::StrCat("segment [", segment.start, ", ", end, ") does not fit its ", room,
                                            " slots of the cache's ", slots));
  }
  for (int32_t token : segment.tokens) {
    if (token < 0 || token >= shape.vocabulary_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("token id ", token, " is outside the vocabulary of ", shape.vocabulary_size));
    }
  }
  if (!segment.targets.empty() && segment.targets.size() != segment.tokens.size()) {
    return absl::InternalError("a segment needs one target per token");
  }
  if (segment.resume &&
      (segment.tokens.size() != 1 || segment.entry_layer < 0 || segment.entry_layer >= shape.moe_layers ||
       segment.entry_hidden.size() != static_cast<size_t>(shape.hidden_size))) {
    return absl::InternalError("a resumed segment has one token and its entry state");
  }
  return absl::OkStatus();
}

// The segments that enter at one layer, as one matrix, and what is wanted of them.
class Batch {
 public:
  Batch(const MoeModel& model, absl::Span<const Segment> segments, const std::vector<size_t>& members,
        std::vector<SegmentOutput>& outputs)
      : config_(model.config()), backend_(model.backend()) {
    for (const size_t i : members) {
      const auto rows = static_cast<int64_t>(segments[i].tokens.size());
      spans_.push_back({&segments[i], &outputs[i], rows_, rows});
      sequences_.push_back({rows_, rows, segments[i].start, segments[i].kv});
      if (segments[i].want_capture) ++captures_;
      rows_ += rows;
    }
    hidden_ = backend_.AllocateHidden(rows_);
    if (captures_ > 0) {
      entries_ = backend_.AllocateHidden(captures_);
      probabilities_ = backend_.Allocate(ElementType::kFloat32, rows_, config_.experts);
      const int64_t rows = captures_ * moe_layers();
      pathways_ = backend_.Allocate(ElementType::kFloat32, rows, config_.experts);
      // A segment that resumes has no weights below its entry layer.
      backend_.Write(std::vector<float>(static_cast<size_t>(rows * config_.experts)), pathways_.view());
    }
  }

  // From the embedding, or from the states that were captured.
  void Enter() {
    backend_.PlaceRows(sequences_);
    if (spans_.front().segment->resume) {
      std::vector<float> entries;
      for (const RowSpan& span : spans_) {
        entries.insert(entries.end(), span.segment->entry_hidden.begin(), span.segment->entry_hidden.end());
      }
      backend_.Write(entries, hidden_.view());
      return;
    }
    std::vector<int64_t> tokens;
    for (const RowSpan& span : spans_)
      tokens.insert(tokens.end(), span.segment->tokens.begin(), span.segment->tokens.end());
    backend_.Embed(tokens, hidden_.view());
  }

  void RunMoeLayer(int layer, int moe_layer) {
    CaptureEntry(moe_layer);
    backend_.Attention(layer, hidden_.view());
    backend_.FeedForward(layer, Routing(moe_layer), hidden_.view(), probabilities_.view());
    CapturePathway(moe_layer);
  }
  void RunDenseLayer(int layer) {
    backend_.Attention(layer, hidden_.view());
    backend_.FeedForward(layer, {}, hidden_.view(), Matrix());
  }

  // Final norm and LM head, for the rows that somebody reads only: first those that are scored, then those whose logits
  // alone are wanted. So the host reads each kind at once.
  void ReadOut() {
    std::vector<int64_t> rows;
    std::vector<int32_t> targets;
    for (const RowSpan& span : spans_) {
      if (!IsScored(span)) continue;
      for (int64_t r = 0; r < span.rows; ++r) rows.push_back(span.first_row + r);
      targets.insert(targets.end(), span.segment->targets.begin(), span.segment->targets.end());
    }
    scored_ = static_cast<int64_t>(rows.size());
    for (const RowSpan& span : spans_) {
      if (WantsLogitsAlone(span)) rows.push_back(span.last_row());
    }
    if (rows.empty()) return;
    const auto count = static_cast<int64_t>(rows.size());
    logits_ = backend_.Allocate(ElementType::kFloat32, count, config_.vocabulary_size);
    backend_.Logits(hidden_.view(), rows, logits_.view());
    if (scored_ == 0) return;
    scores_ = backend_.Allocate(ElementType::kFloat32, scored_, 2);
    backend_.ScoreTargets(logits_.view().Rows(0, scored_), targets, scores_.view());
  }

  // To the host.
  void Deliver() {
    if (scored_ > 0) DeliverScores();
    DeliverLogits();
    if (captures_ > 0) DeliverCaptures();
    for (const EntryRows& entry : sums_) SumRows(entry);
  }

 private:
  // States entering a layer, of which the mean over the prompt is wanted.
  struct EntryRows {
    const RowSpan* span;
    OwnedMatrix rows;
  };

  int64_t moe_layers() const { return static_cast<int64_t>(config_.moe_layers.size()); }

  // What the overrides of all rows say about one MoE layer.
  const std::vector<RoutingRows>& Routing(int moe_layer) {
    routing_.clear();
    for (const RowSpan& span : spans_) {
      const RoutingOverride* const given = span.segment->routing.get();
      if (given == nullptr) continue;
      const auto found = std::lower_bound(given->layers.begin(), given->layers.end(), moe_layer);
      if (found == given->layers.end() || *found != moe_layer) continue;
      const int64_t begin = std::max(0, span.segment->override_start - span.segment->start);
      const int64_t end = std::min<int64_t>(span.rows, int64_t{span.segment->override_end} - span.segment->start);
      if (begin >= end) continue;
      routing_.push_back({span.first_row + begin, span.first_row + end, given->kind,
                          given->values.Row(static_cast<int>(found - given->layers.begin())), -1});
    }
    return routing_;
  }

  // Keeps what segments asked to see of the states entering an MoE layer.
  void CaptureEntry(int moe_layer) {
    int64_t capture = 0;
    for (const RowSpan& span : spans_) {
      const Segment& segment = *span.segment;
      if (!segment.resume && segment.mean_layer == moe_layer) {
        sums_.push_back({&span, backend_.AllocateHidden(span.rows)});
        backend_.Copy(hidden_.view().Rows(span.first_row, span.rows), sums_.back().rows.view());
      }
      if (!segment.want_capture) continue;
      if (!segment.resume && segment.entry_layer == moe_layer) {
        backend_.Copy(hidden_.view().Rows(span.last_row(), 1), entries_.view().Rows(capture, 1));
      }
      ++capture;
    }
  }

  void CapturePathway(int moe_layer) {
    int64_t capture = 0;
    for (const RowSpan& span : spans_) {
      if (!span.segment->want_capture) continue;
      backend_.Copy(probabilities_.view().Rows(span.last_row(), 1),
                    pathways_.view().Rows(capture++ * moe_layers() + moe_layer, 1));
    }
  }

  static bool IsScored(const RowSpan& span) { return !span.segment->targets.empty(); }
  static bool WantsLogitsAlone(const RowSpan& span) { return span.segment->want_logits && !IsScored(span); }

  // Of spans that are not scored. Many rows are one reading, so that a device is waited for once.
  void DeliverLogits() {
    constexpr int64_t kReadMax = int64_t{8} << 20;  // Numbers that lie on the host twice for a moment.
    const int64_t width = config_.vocabulary_size, rows_max = std::max<int64_t>(1, kReadMax / width);
    std::vector<float> staging;
    absl::Span<const float> logits;
    int64_t row = scored_, read_end = scored_;
    for (const RowSpan& span : spans_) {
      if (!WantsLogitsAlone(span)) continue;
      if (row == read_end) {
        const int64_t count = std::min(rows_max, logits_.rows() - row);
        logits = backend_.HostView(logits_.view().Rows(row, count), staging);
        read_end += count;
      }
      const auto end = logits.end() - (read_end - row - 1) * width;
      span.output->logits.assign(end - width, end);
      ++row;
    }
  }

  void DeliverScores() {
    std::vector<float> scores(static_cast<size_t>(2 * scored_));
    backend_.Read(scores_.view(), absl::MakeSpan(scores));
    int64_t row = 0;
    for (const RowSpan& span : spans_) {
      if (!IsScored(span)) continue;
      for (const int64_t end = row + span.rows; row < end; ++row) {
        span.output->target_logprobs.push_back(scores[static_cast<size_t>(2 * row)]);
        span.output->targets_greedy = span.output->targets_greedy && scores[static_cast<size_t>(2 * row + 1)] == 1;
      }
      if (!span.segment->want_logits) continue;
      span.output->logits.resize(static_cast<size_t>(config_.vocabulary_size));
      backend_.Read(logits_.view().Rows(row - 1, 1), absl::MakeSpan(span.output->logits));
    }
  }

  void DeliverCaptures() {
    std::vector<float> entries(static_cast<size_t>(captures_ * config_.hidden_size));
    std::vector<float> pathways(static_cast<size_t>(captures_ * moe_layers() * config_.experts));
    backend_.Read(entries_.view(), absl::MakeSpan(entries));
    backend_.Read(pathways_.view(), absl::MakeSpan(pathways));
    auto entry = entries.begin();
    auto pathway = pathways.begin();
    for (const RowSpan& span : spans_) {
      const Segment& segment = *span.segment;
      if (!segment.want_capture) continue;
      PromptCapture& capture = span.output->capture;
      const bool entered = !segment.resume && segment.entry_layer >= 0 && segment.entry_layer < moe_layers();
      if (entered) capture.entry_hidden.assign(entry, entry + config_.hidden_size);
      capture.pathway = Pathway(static_cast<int>(moe_layers()), config_.experts);
      std::copy_n(pathway, capture.pathway.weights.size(), capture.pathway.weights.begin());
      entry += config_.hidden_size;
      pathway += moe_layers() * config_.experts;
    }
  }

  // Adds row after row, so that the sum is the same however the prompt is cut into chunks.
  void SumRows(const EntryRows& entry) {
    const RowSpan& span = *entry.span;
    const auto width = static_cast<size_t>(config_.hidden_size);
    std::vector<float> values(static_cast<size_t>(span.rows) * width);
    backend_.Read(entry.rows.view(), absl::MakeSpan(values));
    std::vector<double>& sum = span.output->hidden_sum;
    sum = span.segment->hidden_sum;
    sum.resize(width);
    for (size_t i = 0; i < values.size(); ++i) sum[i % width] += values[i];
    if (!span.segment->want_capture) return;
    const auto count = static_cast<double>(span.segment->start + span.rows);
    for (const double value : sum) span.output->capture.mean_hidden.push_back(static_cast<float>(value / count));
  }

  const ModelConfig& config_;
  Backend& backend_;
  std::vector<RowSpan> spans_;
  std::vector<SequenceRows> sequences_;
  std::vector<RoutingRows> routing_;  // of the layer that runs
  int64_t rows_ = 0, captures_ = 0;
  int64_t scored_ = 0;         // rows with targets
  OwnedMatrix hidden_;         // [R, d], the residual stream
  OwnedMatrix entries_;        // [captures, d]
  OwnedMatrix probabilities_;  // [R, E] of the layer that ran last; empty where nobody captures
  OwnedMatrix pathways_;       // [captures * MoE layers, E]
  OwnedMatrix logits_;         // of the rows that are read, the scored ones first
  OwnedMatrix scores_;         // [scored, 2]
  std::vector<EntryRows> sums_;
};

}  // namespace

absl::StatusOr<std::vector<SegmentOutput>> MoeModel::Forward(absl::Span<const Segment> segments) {
  std::map<int, std::vector<size_t>> groups;  // by first MoE layer to run; -1: from the bottom
  for (size_t i = 0; i < segments.size(); ++i) {
    C3PO_RETURN_IF_ERROR(CheckSegment(segments[i], shape_, kv_slots_));
    groups[segments[i].resume ? segments[i].entry_layer : -1].push_back(i);
  }
  std::vector<SegmentOutput> outputs(segments.size());
  try {
    for (const auto& [entry_layer, members] : groups) {
      Batch batch(*this, segments, members, outputs);
      backend_->RunStep([&, entry = entry_layer] {
        batch.Enter();
        int moe_layer = std::max(entry, 0);
        for (int l = entry < 0 ? 0 : config_.moe_layers[entry]; l < config_.layers; ++l) {
          if (config_.IsMoeLayer(l)) {
            batch.RunMoeLayer(l, moe_layer++);
          } else {
            batch.RunDenseLayer(l);
          }
        }
        batch.ReadOut();
      });
      batch.Deliver();
    }
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("forward pass: ", error.what()));
  }
  return outputs;
}

}  // namespace c3po
