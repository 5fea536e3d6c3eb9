#include "server/scheduler/step_plan.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <utility>

#include "absl/strings/string_view.h"

namespace c3po {
namespace {

using Stage = Sequence::Stage;

struct Budget {
  int rows;   // that a sequence may have
  int uncut;  // beyond, of the whole pass
};

bool CaughtUp(const Sequence& s) { return s.cached >= s.wanted(); }

// Rows of prompts and continuations that a sequence has to run, also again where their blocks were given back.
int64_t RowsWanted(const Sequence& s) {
  int64_t rows = std::max(0, s.wanted() - s.cached);
  if (s.stage != Stage::kScore) return rows;
  const auto& continuations = s.request.continuations;
  for (size_t c = 0; c < continuations.size(); ++c) {
    if (s.scores[c].token_logprobs.size() == continuations[c].size()) continue;
    rows += static_cast<int64_t>(continuations[c].size()) - 1;
  }
  return rows - s.partial.rows;
}

// What each sequence may have of `all` rows: every caller the same part, and of what a caller leaves the others more;
// within a caller, the first come what it wants.
std::vector<int> Shares(absl::Span<const std::unique_ptr<Sequence>> running, int all) {
  std::vector<int> shares(running.size());
  std::map<absl::string_view, int64_t> wanted;  // by callers that want more than they have
  for (const auto& s : running) {
    if (const int64_t rows = RowsWanted(*s); rows > 0) wanted[s->request.caller] += rows;
  }
  std::map<absl::string_view, int64_t> given;
  while (all > 0 && !wanted.empty()) {
    const int64_t part = std::max<int64_t>(1, all / static_cast<int64_t>(wanted.size()));
    for (auto it = wanted.begin(); it != wanted.end() && all > 0;) {
      const int64_t more = std::min({part, it->second, int64_t{all}});
      given[it->first] += more;
      all -= static_cast<int>(more);
      it->second -= more;
      it = it->second == 0 ? wanted.erase(it) : std::next(it);
    }
  }
  for (size_t i = 0; i < running.size(); ++i) {
    int64_t& left = given[running[i]->request.caller];
    shares[i] = static_cast<int>(std::min(left, RowsWanted(*running[i])));
    left -= shares[i];
  }
  return shares;
}

// The row of a generating sequence's last token, or of a prompt's last token under the new pathway.
void PlanOwnRow(Sequence& sequence, StepPlan& plan) {
  Segment segment;
  segment.readout = sequence.NextToken();
  sequence.Route(segment);
  segment.start = sequence.wanted();
  segment.experts_per_token = sequence.request.experts_per_token;
  const bool resumes = sequence.stage == Stage::kResume;
  segment.want_routes = resumes ? sequence.request.want_prompt_routes : sequence.request.want_routes;
  if (resumes) {
    segment.resume = true;
    segment.entry_layer = sequence.request.entry_layer;
    segment.entry = sequence.capture.entry.get();
  }
  segment.tokens = absl::MakeConstSpan(sequence.tokens).subspan(static_cast<size_t>(segment.start), 1);
  segment.kv.blocks = sequence.blocks;
  plan.segments.push_back(segment);
  plan.owners.push_back({&sequence, 0, false, {}});
}

// The next chunk of what has to be in the cache: a prompt, what a new pathway governs of it but its last token, or all
// that was lost when the sequence gave its blocks back.
// Only the end of a prompt that runs for the first time is looked at.
void PlanPrompt(Sequence& sequence, Budget& budget, StepPlan& plan) {
  const int count = std::min(budget.rows, sequence.wanted() - sequence.cached);
  if (count <= 0) return;
  budget.rows -= count;
  const bool first_time = sequence.stage == Stage::kPrefill;
  const bool last_chunk = sequence.cached + count == sequence.wanted();
  Segment segment;
  segment.start = sequence.cached;
  segment.tokens =
      absl::MakeConstSpan(sequence.tokens).subspan(static_cast<size_t>(segment.start), static_cast<size_t>(count));
  segment.experts_per_token = sequence.request.experts_per_token;
  segment.want_routes = sequence.request.want_prompt_routes && (first_time || sequence.stage == Stage::kResume);
  if (first_time) {
    segment.entry_layer = sequence.request.entry_layer;
    if (last_chunk) segment.readout = sequence.NextToken();
    if (sequence.reads_prompt()) sequence.ReadPrompt(segment);
    segment.want_capture = last_chunk && sequence.request.on_prefilled;
    if (segment.want_capture) segment.state_layer = sequence.request.state_layer;
    if (sequence.request.on_prefilled) segment.mean_layer = sequence.request.mean_layer;
    segment.state_sum = &sequence.state_sum;
  } else {
    sequence.Route(segment);
  }
  segment.kv.blocks = sequence.blocks;
  plan.segments.push_back(segment);
  plan.owners.push_back({&sequence, 0, !first_time, {}});
}

// The next rows of a continuation, `count` of them, after those that have run; `blocks` are its own.
Segment ContinuationSegment(const Sequence& sequence, size_t continuation, int from, int count,
                            const std::vector<int32_t>& blocks) {
  const absl::Span<const int32_t> tokens = sequence.request.continuations[continuation];
  Segment segment;
  segment.start = sequence.prompt_length() + from;
  segment.tokens = tokens.subspan(static_cast<size_t>(from), static_cast<size_t>(count));
  segment.targets = tokens.subspan(static_cast<size_t>(from) + 1, static_cast<size_t>(count));
  segment.experts_per_token = sequence.request.experts_per_token;
  segment.want_routes = sequence.request.want_routes;
  sequence.Route(segment);
  segment.kv = {sequence.blocks, sequence.prompt_length(), blocks};
  return segment;
}

// One continuation, or as much of it as the budget allows; that is the sequence's `partial` until the rest has run.
// False: there is no room for it.
bool PlanScore(Sequence& sequence, size_t continuation, Budget& budget, KvBlockPool& pool, StepPlan& plan) {
  Sequence::PartialScore& partial = sequence.partial;
  const bool goes_on = partial.rows > 0 && partial.continuation == continuation;
  const int from = goes_on ? partial.rows : 0;
  const int rest = static_cast<int>(sequence.request.continuations[continuation].size()) - 1 - from;
  SegmentOwner owner{&sequence, continuation, false, goes_on ? std::move(partial.blocks) : std::vector<int32_t>()};
  const auto held = static_cast<int64_t>(owner.blocks.size());
  if (budget.rows <= 0 || pool.available() < KvBlockPool::BlocksFor(from + rest) - held) {
    if (goes_on) partial.blocks = std::move(owner.blocks);
    return false;
  }
  const int count = rest <= budget.rows + budget.uncut ? rest : budget.rows;
  budget.uncut -= std::max(0, count - budget.rows);
  budget.rows -= count;
  while (static_cast<int64_t>(owner.blocks.size()) < KvBlockPool::BlocksFor(from + count)) {
    owner.blocks.push_back(*pool.Take(owner.blocks.empty() ? -1 : owner.blocks.back()));
  }
  plan.segments.push_back(ContinuationSegment(sequence, continuation, from, count, owner.blocks));
  partial = {};
  if (count < rest) partial = {continuation, from + count, std::move(owner.blocks)};
  if (count < rest) owner.blocks.clear();
  plan.owners.push_back(std::move(owner));
  return true;
}

// The continuations that are not scored yet, beside each other behind the one prompt.
void PlanScores(Sequence& sequence, Budget& budget, KvBlockPool& pool, StepPlan& plan) {
  const auto& continuations = sequence.request.continuations;
  for (size_t c = 0; c < continuations.size(); ++c) {
    if (sequence.scores[c].token_logprobs.size() == continuations[c].size()) continue;
    if (!PlanScore(sequence, c, budget, pool, plan)) return;
  }
}

}  // namespace

void PlanStep(absl::Span<const std::unique_ptr<Sequence>> running, int prefill_tokens, KvBlockPool& pool,
              StepPlan& plan) {
  plan.segments.clear();
  plan.owners.clear();
  for (const auto& s : running) {
    if (CaughtUp(*s) && (s->stage == Stage::kDecode || s->stage == Stage::kResume)) PlanOwnRow(*s, plan);
  }
  const std::vector<int> shares = Shares(running, prefill_tokens);
  Budget budget{0, kUncutRows};  // What one cannot use, as where blocks lack, goes on to the next.
  for (size_t i = 0; i < running.size(); ++i) {
    Sequence& s = *running[i];
    budget.rows = std::max(0, budget.rows) + shares[i];
    if (!CaughtUp(s)) PlanPrompt(s, budget, plan);
    if (CaughtUp(s) && s.stage == Stage::kScore) PlanScores(s, budget, pool, plan);
  }
}

}  // namespace c3po
