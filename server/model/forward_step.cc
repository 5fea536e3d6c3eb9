#include "server/model/forward_step.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "server/model/config/expert_choice.h"

namespace c3po {
namespace {

struct OverrideOfModel final : PlacedRouting {
  PlacedOverride placed;
};

struct CapturedEntry final : EntryState {
  OwnedMatrix row;  // [1, d]
};

struct PromptSum final : StateSum {
  std::shared_ptr<RowSum> sum;
};

int EntryLayerOf(const Segment& segment) { return segment.resume ? segment.entry_layer : -1; }

}  // namespace

ForwardStep::ForwardStep(const ModelConfig& config, Backend& backend) : config_(config), backend_(backend) {}

absl::StatusOr<std::shared_ptr<const PlacedRouting>> ForwardStep::Place(const RoutingOverride& routing) {
  const auto layers = static_cast<int64_t>(routing.layers.size());
  if (layers == 0 || routing.values.layers != layers || routing.values.experts != config_.experts) {
    return absl::InternalError(absl::StrCat("an override of ", layers, " layers has ", routing.values.layers,
                                            " rows of ", routing.values.experts, " experts"));
  }
  auto placed = std::make_shared<OverrideOfModel>();
  placed->placed.kind = routing.kind;
  for (const int layer : routing.layers) {
    if (layer < 0 || layer >= moe_layers()) return absl::InternalError(absl::StrCat("an override of layer ", layer));
    placed->placed.layers.push_back(config_.moe_layers[static_cast<size_t>(layer)]);
  }
  placed->placed.values = backend_.Allocate(ElementType::kFloat32, layers, config_.experts);
  backend_.Write(routing.values.weights, placed->placed.values.view());
  return placed;
}

void ForwardStep::Run(absl::Span<const Segment> segments, std::vector<SegmentOutput>& outputs) {
  outputs.resize(segments.size());
  order_.resize(segments.size());
  std::iota(order_.begin(), order_.end(), size_t{0});
  std::sort(order_.begin(), order_.end(), [&](size_t a, size_t b) {
    const int first = EntryLayerOf(segments[a]), second = EntryLayerOf(segments[b]);
    return first != second ? first < second : a < b;
  });
  const auto release = absl::MakeCleanup([this] {
    step_ = {};
    entries_ = pathways_ = routes_ = {};
  });
  for (size_t begin = 0; begin < order_.size();) {
    const int entry_layer = EntryLayerOf(segments[order_[begin]]);
    spans_.clear();
    for (; begin < order_.size() && EntryLayerOf(segments[order_[begin]]) == entry_layer; ++begin) {
      spans_.push_back({&segments[order_[begin]], &outputs[order_[begin]], 0, 0, nullptr});
    }
    RunGroup(entry_layer);
  }
}

// Everything is enqueued; what is read waits once.
void ForwardStep::RunGroup(int entry_layer) {
  first_routed_layer_ = std::max(entry_layer, 0);
  PlaceRows();
  const int first_layer = entry_layer < 0 ? 0 : config_.moe_layers[static_cast<size_t>(entry_layer)];
  const bool varies = entry_layer >= 0 || captures_ > 0 || sums_ > 0 || routed_ > 0;
  const auto head_rows = static_cast<int64_t>(head_rows_.size()), targets = static_cast<int64_t>(targets_.size());
  backend_.RunStep({first_layer, rows_, head_rows, targets, varies}, [&] {
    Enter(entry_layer);
    int moe_layer = std::max(entry_layer, 0);
    for (int l = first_layer; l < config_.layers; ++l) {
      const bool moe = config_.IsMoeLayer(l);
      if (moe) {
        CaptureEntry(moe_layer);
        CaptureStates(moe_layer);
      }
      backend_.Attention(l, step_.hidden.view());
      backend_.FeedForward(l, step_.hidden.view(), moe ? step_.probabilities.view() : Matrix());
      if (!moe) continue;
      CapturePathway(moe_layer);
      CaptureRoutes(moe_layer++);
    }
    CaptureStates(moe_layer);
    if (head_rows > 0) backend_.Logits(step_.hidden.view(), step_.logits.view());
    if (targets > 0) backend_.ScoreTargets(step_.logits.view(), step_.scores.view());
  });
  Deliver();
}

void ForwardStep::PlaceRows() {
  sequences_.clear();
  tokens_.clear();
  counts_.clear();
  rows_ = captures_ = sums_ = routed_ = 0;
  for (RowSpan& span : spans_) {
    const Segment& segment = *span.segment;
    span.first_row = rows_;
    span.rows = static_cast<int64_t>(segment.tokens.size());
    sequences_.push_back({span.first_row, span.rows, segment.start, segment.kv});
    if (!segment.resume) tokens_.insert(tokens_.end(), segment.tokens.begin(), segment.tokens.end());
    if (segment.experts_per_token > 0 && segment.experts_per_token != config_.experts_per_token) {
      counts_.push_back({span.first_row, span.first_row + span.rows, segment.experts_per_token});
    }
    rows_ += span.rows;
    routed_ += segment.want_routes ? span.rows : 0;
    captures_ += segment.want_capture ? 1 : 0;
    sums_ += segment.mean_layer >= 0 ? 1 : 0;
    span.output->target_logprobs.clear();
    span.output->targets_greedy = true;
    span.output->capture = {};
    span.output->routes = {};
  }
  PlaceHeadRows();
  PlaceOverrides();
  step_ = backend_.PlaceStep(
      {sequences_, tokens_, overrides_, captures_ > 0 || routed_ > 0, head_rows_, targets_, counts_});
  if (routed_ > 0) {
    routes_ = backend_.Allocate(ElementType::kFloat32, (moe_layers() - first_routed_layer_) * routed_, config_.experts);
  }
  if (captures_ == 0) return;
  entries_ = backend_.AllocateHidden(captures_);
  pathways_ = backend_.Allocate(ElementType::kFloat32, captures_ * moe_layers(), config_.experts);
  // A segment that resumes has no weights below its entry layer.
  pathways_on_host_.assign(static_cast<size_t>(pathways_.rows() * config_.experts), 0);
  backend_.Write(pathways_on_host_, pathways_.view());
}

// Final norm and LM head are for the rows that somebody reads only: first those that are scored, then those that are
// read out. So the host reads each kind at once.
void ForwardStep::PlaceHeadRows() {
  head_rows_.clear();
  targets_.clear();
  requests_.clear();
  readouts_.clear();
  for (const RowSpan& span : spans_) {
    if (!span.scored()) continue;
    for (int64_t r = 0; r < span.rows; ++r) head_rows_.push_back(span.first_row + r);
    targets_.insert(targets_.end(), span.segment->targets.begin(), span.segment->targets.end());
  }
  for (const RowSpan& span : spans_) {
    const absl::Span<const ReadoutRequest> of_rows = span.segment->row_readouts;
    span.output->row_readouts.resize(of_rows.size());
    for (size_t r = 0; r < of_rows.size(); ++r) {
      head_rows_.push_back(span.first_row + static_cast<int64_t>(r));
      requests_.push_back(&of_rows[r]);
      readouts_.push_back(&span.output->row_readouts[r]);
    }
    if (!span.segment->readout.wanted()) continue;
    head_rows_.push_back(span.last_row());
    requests_.push_back(&span.segment->readout);
    readouts_.push_back(&span.output->readout);
  }
}

void ForwardStep::PlaceOverrides() {
  overrides_.clear();
  for (const RowSpan& span : spans_) {
    const Segment& segment = *span.segment;
    if (segment.routing == nullptr) continue;
    const int64_t begin = std::max(0, segment.override_start - segment.start);
    const int64_t end = std::min<int64_t>(span.rows, int64_t{segment.override_end} - segment.start);
    if (begin >= end) continue;
    overrides_.push_back(
        {span.first_row + begin, span.first_row + end, &static_cast<const OverrideOfModel&>(*segment.routing).placed});
  }
}

// From the embedding, or from the states that were captured.
void ForwardStep::Enter(int entry_layer) {
  if (entry_layer >= 0) {
    for (const RowSpan& span : spans_) {
      const auto& entry = static_cast<const CapturedEntry&>(*span.segment->entry);
      backend_.Copy(entry.row.view(), step_.hidden.view().Rows(span.first_row, 1));
    }
    return;
  }
  backend_.Embed(step_.hidden.view());
}

// Keeps what segments asked to see of the states entering an MoE layer.
void ForwardStep::CaptureEntry(int moe_layer) {
  int64_t capture = 0;
  for (const RowSpan& span : spans_) {
    const Segment& segment = *span.segment;
    if (!segment.resume && segment.mean_layer == moe_layer) {
      std::shared_ptr<StateSum>& sum = *segment.state_sum;
      if (sum == nullptr) {
        auto made = std::make_shared<PromptSum>();
        made->sum = backend_.NewRowSum();
        sum = std::move(made);
      }
      backend_.AddRows(step_.hidden.view().Rows(span.first_row, span.rows), *static_cast<PromptSum&>(*sum).sum);
    }
    if (!segment.want_capture) continue;
    if (!segment.resume && segment.entry_layer == moe_layer) {
      backend_.Copy(step_.hidden.view().Rows(span.last_row(), 1), entries_.view().Rows(capture, 1));
    }
    ++capture;
  }
}

// Keeps the states of last tokens that segments asked for, each as a sum of one.
void ForwardStep::CaptureStates(int moe_layer) {
  for (RowSpan& span : spans_) {
    if (!span.segment->want_capture || span.segment->resume || span.segment->state_layer != moe_layer) continue;
    span.state = backend_.NewRowSum();
    backend_.AddRows(step_.hidden.view().Rows(span.last_row(), 1), *span.state);
  }
}

void ForwardStep::CapturePathway(int moe_layer) {
  int64_t capture = 0;
  for (const RowSpan& span : spans_) {
    if (!span.segment->want_capture) continue;
    backend_.Copy(step_.probabilities.view().Rows(span.last_row(), 1),
                  pathways_.view().Rows(capture++ * moe_layers() + moe_layer, 1));
  }
}

// By layer, so that a segment's rows are one copy.
void ForwardStep::CaptureRoutes(int moe_layer) {
  int64_t row = (moe_layer - first_routed_layer_) * routed_;
  for (const RowSpan& span : spans_) {
    if (!span.segment->want_routes) continue;
    backend_.Copy(step_.probabilities.view().Rows(span.first_row, span.rows), routes_.view().Rows(row, span.rows));
    row += span.rows;
  }
}

// To the host.
void ForwardStep::Deliver() {
  const auto scored = static_cast<int64_t>(targets_.size()), read = static_cast<int64_t>(requests_.size());
  if (scored > 0) DeliverScores();
  if (read > 0) backend_.ReadOut(step_.logits.view().Rows(scored, read), requests_, readouts_);
  if (captures_ > 0) DeliverCaptures();
  if (routed_ > 0) DeliverRoutes();
}

void ForwardStep::DeliverScores() {
  scores_on_host_.resize(2 * targets_.size());
  backend_.Read(step_.scores.view(), absl::MakeSpan(scores_on_host_));
  size_t row = 0;
  for (const RowSpan& span : spans_) {
    if (!span.scored()) continue;
    for (const size_t end = row + static_cast<size_t>(span.rows); row < end; ++row) {
      span.output->target_logprobs.push_back(scores_on_host_[2 * row]);
      span.output->targets_greedy = span.output->targets_greedy && scores_on_host_[2 * row + 1] == 1;
    }
  }
}

// The backend chose by these probabilities, and so does the host.
void ForwardStep::DeliverRoutes() {
  const int64_t experts = config_.experts;
  routes_on_host_.resize(static_cast<size_t>(routes_.rows() * experts));
  backend_.Read(routes_.view(), absl::MakeSpan(routes_on_host_));
  std::vector<int64_t> selected;
  std::vector<float> weights(static_cast<size_t>(experts));
  float total = 0;
  int64_t first = 0;
  for (const RowSpan& span : spans_) {
    const Segment& segment = *span.segment;
    if (!segment.want_routes) continue;
    const int k = segment.experts_per_token > 0 ? segment.experts_per_token : config_.experts_per_token;
    RoutedExperts& routes = span.output->routes;
    routes = {segment.start, static_cast<int>(moe_layers()), k, {}, {}};
    routes.ResizeTo(segment.start + static_cast<int>(span.rows));
    selected.resize(static_cast<size_t>(k));
    for (int64_t layer = first_routed_layer_; layer < moe_layers(); ++layer) {
      for (int64_t r = 0; r < span.rows; ++r) {
        const float* const p = routes_on_host_.data() + ((layer - first_routed_layer_) * routed_ + first + r) * experts;
        ChooseExperts(config_, k, p, selected.data(), weights.data(), config_.norm_topk_prob ? &total : nullptr);
        const int64_t to = (r * moe_layers() + layer) * k;
        for (int64_t j = 0; j < k; ++j) {
          routes.ids[to + j] = static_cast<int32_t>(selected[j]);
          routes.weights[to + j] = weights[selected[j]];
        }
      }
    }
    first += span.rows;
  }
}

void ForwardStep::DeliverCaptures() {
  backend_.Read(pathways_.view(), absl::MakeSpan(pathways_on_host_));
  auto pathway = pathways_on_host_.begin();
  int64_t row = 0;
  for (const RowSpan& span : spans_) {
    const Segment& segment = *span.segment;
    if (!segment.want_capture) continue;
    PromptCapture& capture = span.output->capture;
    if (!segment.resume && segment.entry_layer >= 0 && segment.entry_layer < moe_layers()) {
      auto entry = std::make_shared<CapturedEntry>();
      entry->row = entries_.Rows(row, 1);
      capture.entry = std::move(entry);
    }
    capture.pathway = Pathway(static_cast<int>(moe_layers()), config_.experts);
    std::copy_n(pathway, capture.pathway.weights.size(), capture.pathway.weights.begin());
    pathway += moe_layers() * config_.experts;
    ++row;
    if (span.state != nullptr) {
      capture.state.resize(static_cast<size_t>(config_.hidden_size));
      backend_.ReadMean(*span.state, 1, absl::MakeSpan(capture.state));
    }
    if (segment.resume || segment.mean_layer < 0) continue;
    capture.mean_hidden.resize(static_cast<size_t>(config_.hidden_size));
    backend_.ReadMean(*static_cast<const PromptSum&>(**segment.state_sum).sum, segment.start + span.rows,
                      absl::MakeSpan(capture.mean_hidden));
  }
}

}  // namespace c3po
