#include "server/scheduler/step_plan.h"

#include <algorithm>
#include <utility>

namespace c3po {
namespace {

using Stage = Sequence::Stage;

// The row of a generating sequence's last token, or of a prompt's last token under the new pathway.
void PlanOwnRow(Sequence& sequence, StepPlan& plan) {
  Segment segment;
  segment.want_logits = true;
  sequence.Route(segment);
  if (sequence.stage == Stage::kResume) {
    segment.start = sequence.last_prompt_position();
    segment.tokens = {sequence.request.prompt.back()};
    segment.resume = true;
    segment.entry_layer = sequence.request.entry_layer;
    segment.entry_hidden = sequence.capture.entry_hidden;
  } else {
    segment.start = sequence.wanted();
    segment.tokens = {sequence.tokens.back()};
  }
  KvBlockPool::AppendRuns(sequence.blocks, segment.start + 1, segment.kv);
  plan.segments.push_back(std::move(segment));
  plan.owners.push_back({&sequence, 0, false, {}});
}

// The next chunk of what has to be in the cache: a prompt, what a new pathway governs of it but its last token, or all
// that was lost when the sequence gave its blocks back.
// Only the end of a prompt that runs for the first time is looked at.
void PlanPrompt(Sequence& sequence, int& budget, StepPlan& plan) {
  const int count = std::min(budget, sequence.wanted() - sequence.cached);
  if (count <= 0) return;
  budget -= count;
  const bool first_time = sequence.stage == Stage::kPrefill;
  const bool last_chunk = sequence.cached + count == sequence.wanted();
  Segment segment;
  segment.start = sequence.cached;
  segment.tokens.assign(sequence.tokens.begin() + sequence.cached, sequence.tokens.begin() + sequence.cached + count);
  if (first_time) {
    segment.entry_layer = sequence.request.entry_layer;
    segment.want_logits = last_chunk;
    segment.want_capture = last_chunk && sequence.request.on_prefilled;
    if (sequence.request.on_prefilled) segment.mean_layer = sequence.request.mean_layer;
    segment.hidden_sum = sequence.hidden_sum;
  } else {
    sequence.Route(segment);
  }
  KvBlockPool::AppendRuns(sequence.blocks, segment.start + count, segment.kv);
  plan.segments.push_back(std::move(segment));
  plan.owners.push_back({&sequence, 0, !first_time, {}});
}

// The continuations that are not scored yet, beside each other behind the one prompt.
void PlanScores(Sequence& sequence, int& budget, KvBlockPool& pool, StepPlan& plan) {
  const auto& continuations = sequence.request.continuations;
  for (size_t c = 0; c < continuations.size(); ++c) {
    const auto rows = static_cast<int64_t>(continuations[c].size()) - 1;
    if (sequence.scores[c].token_logprobs.size() == continuations[c].size()) continue;
    if (budget <= 0 || pool.available() < KvBlockPool::BlocksFor(rows)) return;
    budget -= static_cast<int>(rows);
    SegmentOwner owner{&sequence, c, false, {}};
    while (static_cast<int64_t>(owner.blocks.size()) < KvBlockPool::BlocksFor(rows)) {
      owner.blocks.push_back(*pool.Take(owner.blocks.empty() ? -1 : owner.blocks.back()));
    }
    Segment segment;
    segment.start = sequence.prompt_length();
    segment.tokens.assign(continuations[c].begin(), continuations[c].end() - 1);
    segment.targets.assign(continuations[c].begin() + 1, continuations[c].end());
    sequence.Route(segment);
    KvBlockPool::AppendRuns(sequence.blocks, sequence.prompt_length(), segment.kv);
    KvBlockPool::AppendRuns(owner.blocks, rows, segment.kv);
    plan.segments.push_back(std::move(segment));
    plan.owners.push_back(std::move(owner));
  }
}

}  // namespace

StepPlan PlanStep(absl::Span<const std::unique_ptr<Sequence>> running, int prefill_tokens, KvBlockPool& pool) {
  StepPlan plan;
  int budget = prefill_tokens;
  const auto caught_up = [](const Sequence& s) { return s.cached >= s.wanted(); };
  for (const auto& s : running) {
    if (caught_up(*s) && (s->stage == Stage::kDecode || s->stage == Stage::kResume)) PlanOwnRow(*s, plan);
  }
  for (const auto& s : running) {
    if (!caught_up(*s)) PlanPrompt(*s, budget, plan);
    if (caught_up(*s) && s->stage == Stage::kScore) PlanScores(*s, budget, pool, plan);
  }
  return plan;
}

}  // namespace c3po
