#include "server/scheduler/optimization_unit.h"

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <utility>

namespace c3po {
namespace {

double SecondsBetween(absl::Time a, absl::Time b) { return absl::ToDoubleSeconds(b - a); }

bool MayWork(const Sequence& sequence) {
  return sequence.stage == Sequence::Stage::kOptimizing && sequence.work_granted;
}

}  // namespace

bool OptimizationUnit::Holds(const Sequence* sequence) const {
  return std::any_of(members.begin(), members.end(), [&](const Member& m) { return m.sequence == sequence; });
}

OptimizationUnit* OptimizationUnits::Begun(const Sequence* sequence) {
  const auto holds = [&](const std::unique_ptr<OptimizationUnit>& unit) { return unit->Holds(sequence); };
  const auto found = std::find_if(units_.begin(), units_.end(), holds);
  return found == units_.end() ? nullptr : found->get();
}

// Adds a sequence that waits for evaluations, if all of them together keep to their rows; the first always.
bool OptimizationUnits::Join(Sequence& sequence, OptimizationUnit& unit) const {
  std::vector<Evaluation> wanted = sequence.task->AskAll();
  if (wanted.empty()) return false;
  int64_t own = 0, others = 0;
  for (const Evaluation& evaluation : wanted) own += evaluation.objective->rows();
  for (const OptimizationUnit::Member& member : unit.members) others += member.rows;
  if (!unit.members.empty() && own + others > kEvaluationRowsMax) return false;
  unit.members.push_back({&sequence, sequence.task, wanted.size(), own, 0});
  std::move(wanted.begin(), wanted.end(), std::back_inserter(unit.evaluations));
  return true;
}

namespace {

// Tells a member what came of its evaluations; the first that failed is what it hears of instead.
absl::StatusOr<bool> TellMember(const OptimizationUnit::Member& member,
                                absl::Span<absl::StatusOr<LossAndGradient>> results) {
  std::vector<LossAndGradient> own;
  for (absl::StatusOr<LossAndGradient>& result : results) {
    if (!result.ok()) return result.status();
    own.push_back(*std::move(result));
  }
  return member.task->TellAll(own, member.seconds);
}

}  // namespace

void OptimizationUnits::Charge(const OptimizationUnit::Member& member, double seconds) {
  constexpr double kLeast = 1e-9;  // So that turns are taken where the clock is too coarse.
  const auto found = seconds_.find(member.sequence->request.caller);
  if (found != seconds_.end()) found->second += std::max(seconds, kLeast);
}

// One that has come anew begins with what the least of the others has had: it has no claim on the time before.
absl::string_view OptimizationUnits::CallerInTurn(absl::Span<const std::unique_ptr<Sequence>> running) {
  std::map<std::string, double, std::less<>> here;
  std::vector<absl::string_view> anew;
  double least = 0;
  for (const auto& sequence : running) {
    if (!MayWork(*sequence)) continue;
    const std::string& caller = sequence->request.caller;
    const auto known = seconds_.find(caller);
    if (known == seconds_.end()) {
      anew.push_back(caller);
    } else if (here.emplace(*known).second) {
      least = here.size() == 1 ? known->second : std::min(least, known->second);
    }
  }
  for (const absl::string_view caller : anew) here.emplace(caller, least);
  seconds_ = std::move(here);
  const auto less = [](const auto& a, const auto& b) { return a.second < b.second; };
  const auto first = std::min_element(seconds_.begin(), seconds_.end(), less);
  return first == seconds_.end() ? absl::string_view() : absl::string_view(first->first);
}

OptimizationUnit* OptimizationUnits::Next(absl::Span<const std::unique_ptr<Sequence>> running) {
  const std::string caller(CallerInTurn(running));
  std::vector<Sequence*> waiting;
  for (const auto& sequence : running) {
    if (!MayWork(*sequence)) continue;
    if (sequence->turn == 0) sequence->turn = ++turn_;
    waiting.push_back(sequence.get());
  }
  std::stable_sort(waiting.begin(), waiting.end(),
                   [](const Sequence* a, const Sequence* b) { return a->turn < b->turn; });
  const auto of_caller = [&](const Sequence* sequence) { return sequence->request.caller == caller; };
  const auto first = std::find_if(waiting.begin(), waiting.end(), of_caller);
  if (first == waiting.end()) return nullptr;
  OptimizationUnit* unit = Begun(*first);
  if (unit == nullptr) {
    unit = units_.emplace_back(std::make_unique<OptimizationUnit>()).get();
    if (!Join(**first, *unit)) unit->members.push_back({*first, (*first)->task, 0, 0, 0});
    for (Sequence* const other : waiting) {
      if (!unit->evaluations.empty() && Begun(other) == nullptr) Join(*other, *unit);
    }
  }
  ++turn_;
  for (const OptimizationUnit::Member& member : unit->members) member.sequence->turn = turn_;
  return unit;
}

std::vector<OptimizationUnits::Outcome> OptimizationUnits::Advance(OptimizationUnit* unit, int64_t row_layers,
                                                                   ModelRunner& model,
                                                                   const std::function<absl::Time()>& now) {
  const auto is_unit = [unit](const std::unique_ptr<OptimizationUnit>& u) { return u.get() == unit; };
  const auto place = std::find_if(units_.begin(), units_.end(), is_unit);
  std::vector<Outcome> outcomes;
  if (unit->evaluations.empty()) {
    const OptimizationUnit::Member& member = unit->members.front();
    const absl::Time start = now();
    outcomes.push_back({member.sequence, member.task->Step(row_layers)});
    const double seconds = SecondsBetween(start, now());
    member.sequence->timings.optimization_seconds += seconds;
    Charge(member, seconds);
    units_.erase(place);
    return outcomes;
  }
  const absl::Time start = now();
  if (!unit->run) unit->run = model.NewEvaluationRun(unit->evaluations);
  const absl::StatusOr<bool> done = unit->run->Advance(row_layers);
  const double seconds = SecondsBetween(start, now());
  int64_t all_rows = 0;
  for (const OptimizationUnit::Member& member : unit->members) all_rows += member.rows;
  for (OptimizationUnit::Member& member : unit->members) {
    const double share = seconds * static_cast<double>(member.rows) / static_cast<double>(all_rows);
    member.seconds += share;
    Charge(member, share);
  }
  if (done.ok() && !*done) return outcomes;
  std::vector<absl::StatusOr<LossAndGradient>> results;
  if (done.ok()) {
    results = unit->run->TakeResults();
  } else {
    results.assign(unit->evaluations.size(), done.status());
  }
  absl::Span<absl::StatusOr<LossAndGradient>> rest = absl::MakeSpan(results);
  for (const OptimizationUnit::Member& member : unit->members) {
    const absl::Time told = now();
    outcomes.push_back({member.sequence, TellMember(member, rest.subspan(0, member.evaluations))});
    rest.remove_prefix(member.evaluations);
    member.sequence->timings.optimization_seconds += member.seconds + SecondsBetween(told, now());
  }
  units_.erase(place);
  return outcomes;
}

void OptimizationUnits::Leave(const Sequence* sequence) {
  const auto holds = [&](const std::unique_ptr<OptimizationUnit>& unit) { return unit->Holds(sequence); };
  const auto place = std::find_if(units_.begin(), units_.end(), holds);
  if (place == units_.end()) return;
  OptimizationUnit& unit = **place;
  if (unit.members.size() == 1) {
    units_.erase(place);
    return;
  }
  const auto is_left = [&](const OptimizationUnit::Member& member) { return member.sequence == sequence; };
  const auto member = std::find_if(unit.members.begin(), unit.members.end(), is_left);
  unit.run.reset();
  size_t before = 0;
  for (auto each = unit.members.begin(); each != member; ++each) before += each->evaluations;
  const auto first = unit.evaluations.begin() + static_cast<std::ptrdiff_t>(before);
  unit.evaluations.erase(first, first + static_cast<std::ptrdiff_t>(member->evaluations));
  unit.members.erase(member);
}

}  // namespace c3po
