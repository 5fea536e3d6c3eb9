#include "server/compute/cuda/recorded_passes.h"

#include <algorithm>

namespace c3po::cuda {

// A weak pointer keeps an object's place from being taken by another, so that equal owners are the same object.
RecordedPass& RecordedPasses::Of(const WholePasses::Pass& pass) {
  ForgetEnded();
  const auto is_same = [&](const Entry& entry) {
    const auto same_object = [](const std::weak_ptr<const void>& a, const std::shared_ptr<const void>& b) {
      return !a.owner_before(b) && !b.owner_before(a);
    };
    return entry.form == pass.form && std::equal(entry.objectives.begin(), entry.objectives.end(),
                                                 pass.objectives.begin(), pass.objectives.end(), same_object);
  };
  const auto found = std::find_if(entries_.begin(), entries_.end(), is_same);
  if (found != entries_.end()) {
    entries_.splice(entries_.begin(), entries_, found);
    return entries_.front().pass;
  }
  if (entries_.size() >= kMax) {
    DropGraph(entries_.back().pass);
    entries_.pop_back();
  }
  entries_.push_front({{pass.objectives.begin(), pass.objectives.end()}, pass.form, {}});
  return entries_.front().pass;
}

void RecordedPasses::ForgetEnded() {
  entries_.remove_if([this](Entry& entry) {
    const bool ended = std::any_of(entry.objectives.begin(), entry.objectives.end(),
                                   [](const std::weak_ptr<const void>& one) { return one.expired(); });
    if (ended) DropGraph(entry.pass);
    return ended;
  });
}

void RecordedPasses::Clear() {
  DropGraphs();
  entries_.clear();
}

void RecordedPasses::DropGraphs() {
  for (Entry& entry : entries_) DropGraph(entry.pass);
}

// An error here is of work that was enqueued before, and comes out where somebody waits for that.
void RecordedPasses::DropGraph(RecordedPass& pass) {
  if (pass.graph != nullptr) static_cast<void>(runtime_.DeleteGraph(pass.graph));
  pass.graph = nullptr;
}

}  // namespace c3po::cuda
