#include "tests/host_cuda/block_run.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace c3po::host_cuda {

namespace {

constexpr int kLanes = 32;
bool SamePlace(const std::source_location& a, const std::source_location& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

std::string Triple(const int (&at)[3]) {
  return "(" + std::to_string(at[0]) + ", " + std::to_string(at[1]) + ", " + std::to_string(at[2]) + ")";
}

// What a thread is at, in words: threads of the same words are reported together.
std::string StateOf(const Fiber& fiber) {
  if (fiber.ended) return "ended";
  if (fiber.waits == nullptr) return "can go on";
  const std::source_location& place = fiber.waits->place;
  return std::string("at ") + fiber.waits->kind->name + " (" + place.file_name() + ":" + std::to_string(place.line()) +
         ":" + std::to_string(place.column()) + ")";
}

}  // namespace

BlockRun::BlockRun(const KernelLaunch& launch, StackSet stacks)
    : launch_(launch),
      stacks_(stacks),
      shared_(static_cast<size_t>(launch.shared_bytes), 128),
      fibers_(static_cast<size_t>(launch.threads)) {
  arrived_.resize(fibers_.size() / kLanes);
  for (Fiber& fiber : fibers_) {
    fiber.thread = static_cast<int>(by_thread_.size());
    fiber.threads = launch.threads;
    std::copy_n(launch.blocks, 3, fiber.blocks);
    fiber.run = this;
    by_thread_.push_back(&fiber);
  }
}

BlockRun::~BlockRun() {
  for (Fiber& fiber : fibers_) {
    if (fiber.begun && !fiber.ended) fiber.context.GiveUp();
  }
}

void BlockRun::RunToTheGate() {
  gated_ = true;
  Run();
}

void BlockRun::RunToTheEnd() {
  gated_ = false;
  ready_.insert(ready_.end(), at_the_gate_.begin(), at_the_gate_.end());
  at_the_gate_.clear();
  Run();
  CheckEnd();
}

void BlockRun::Run() {
  current_thread = TakeNext();
  if (current_thread != nullptr) scheduler_.SwitchTo(static_cast<Fiber*>(current_thread)->context);
  current_thread = nullptr;
  if (fault_ != nullptr) std::rethrow_exception(fault_);
}

void BlockRun::Begin(const BlockPlace& block, Order order) {
  order_ = order;
  shared_.Poison();
  std::fill(arrived_.begin(), arrived_.end(), 0);
  arrived_at_barrier_ = 0;
  ended_ = 0;
  style_ = static_cast<Style>(order_.Below(3));
  ready_.clear();
  at_the_gate_.clear();
  MakeReady(by_thread_.data(), launch_.threads);
  for (Fiber& fiber : fibers_) {
    std::copy(block.begin(), block.end(), fiber.block);
    fiber.waits = nullptr;
    fiber.ended = false;
    fiber.begun = true;
    fiber.waited_for_previous_kernel = false;
    fiber.open_copies.clear();
    fiber.copy_groups.clear();
    fiber.context.Begin(StackOf(stacks_, fiber.thread), &BlockRun::RunFiber, &fiber);
  }
}

void BlockRun::RunFiber(void* argument) {
  Fiber& self = *static_cast<Fiber*>(argument);
  BlockRun& run = *self.run;
  try {
    run.launch_.thread();
    self.ended = true;
    ++run.ended_;
  } catch (const KernelFault& fault) {
    run.fault_ = std::make_exception_ptr(
        KernelFault(run.Where() + ", thread " + std::to_string(self.thread) + ": " + fault.what()));
  } catch (...) {
    run.fault_ = std::current_exception();
  }
  run.LeaveFrom(self);
}

void BlockRun::LeaveFrom(Fiber& self) {
  Fiber* const next = fault_ == nullptr ? TakeNext() : nullptr;
  current_thread = next;
  self.context.LeaveTo(next != nullptr ? next->context : scheduler_);
}

void BlockRun::WaitForGroup(Fiber& self, Arrival& arrival) {
  self.waits = &arrival;
  if (arrival.kind->of_block) {
    if (++arrived_at_barrier_ == launch_.threads && Complete(arrival, by_thread_.data(), launch_.threads)) {
      arrived_at_barrier_ = 0;
    }
  } else {
    const int warp = self.thread / kLanes;
    int& arrived = arrived_[static_cast<size_t>(warp)];
    if (++arrived == kLanes && Complete(arrival, by_thread_.data() + warp * kLanes, kLanes)) arrived = 0;
  }
  SwitchFrom(self);
}

// All of a group have come to a collective. False: not to the same one, so none of them goes on.
bool BlockRun::Complete(const Arrival& arrival, Fiber* const* group, int size) {
  for (int i = 0; i < size; ++i) {
    const Arrival& other = *group[i]->waits;
    if (other.kind != arrival.kind || !SamePlace(other.place, arrival.place)) return false;
  }
  if (arrival.kind->complete != nullptr) {
    Arrival* lanes[kLanes];
    for (int i = 0; i < kLanes; ++i) lanes[i] = const_cast<Arrival*>(group[i]->waits);
    arrival.kind->complete(lanes);
  }
  for (int i = 0; i < size; ++i) group[i]->waits = nullptr;
  MakeReady(group, size);
  return true;
}

void BlockRun::Shuffle(size_t first, int size) {
  for (int i = size; i > 1; --i) {
    std::swap(ready_[first + static_cast<size_t>(i - 1)], ready_[first + static_cast<size_t>(order_.Below(i))]);
  }
}

void BlockRun::MakeReady(Fiber* const* group, int size) {
  if (style_ != Style::kNewestByWarp || size == kLanes) {
    ready_.insert(ready_.end(), group, group + size);
    Shuffle(ready_.size() - static_cast<size_t>(size), size);
    return;
  }
  // Each warp goes in front of one of those that are there already, or behind them all.
  for (int warp = 0; warp < size / kLanes; ++warp) {
    const size_t first = ready_.size() - static_cast<size_t>(kLanes * order_.Below(warp + 1));
    Fiber* const* const lanes = group + warp * kLanes;
    ready_.insert(ready_.begin() + static_cast<ptrdiff_t>(first), lanes, lanes + kLanes);
    Shuffle(first, kLanes);
  }
}

void BlockRun::MaybeYield(Fiber& self) {
  if (order_.Below(4) != 0) return;
  ready_.push_back(&self);
  std::swap(ready_.back(), ready_[static_cast<size_t>(order_.Below(static_cast<int>(ready_.size())))]);
  SwitchFrom(self);
}

void BlockRun::WaitAtTheGate(Fiber& self) {
  self.waited_for_previous_kernel = true;
  if (!gated_) return;
  at_the_gate_.push_back(&self);
  SwitchFrom(self);
}

Fiber* BlockRun::TakeNext() {
  if (ready_.empty()) return nullptr;
  if (style_ == Style::kAny)
    std::swap(ready_.back(), ready_[static_cast<size_t>(order_.Below(static_cast<int>(ready_.size())))]);
  Fiber* const next = ready_.back();
  ready_.pop_back();
  return next;
}

// Where nobody can go on the scheduler reports it, and this fiber is given up.
void BlockRun::SwitchFrom(Fiber& self) {
  Fiber* const next = TakeNext();
  if (next == &self) return;
  current_thread = next;
  self.context.SwitchTo(next != nullptr ? next->context : scheduler_);
}

void BlockRun::CheckEnd() const {
  if (ended_ != launch_.threads) throw KernelFault(Where() + ": deadlock: " + WhoWaits());
  for (const Fiber& fiber : fibers_) {
    if (launch_.early && !fiber.waited_for_previous_kernel) {
      throw KernelFault(Where() + ", thread " + std::to_string(fiber.thread) +
                        ": launched early, and ended without WaitForPreviousKernel");
    }
  }
  if (const int behind = shared_.FirstByteBehind(); behind >= 0) {
    throw KernelFault(Where() + ": byte " + std::to_string(launch_.shared_bytes + behind) + " of " +
                      std::to_string(launch_.shared_bytes) + " bytes of shared memory was written");
  }
}

std::string BlockRun::Where() const {
  return "kernel of " + launch_.name + ", block " + Triple(fibers_.front().block) + " of " + Triple(launch_.blocks) +
         ", seed " + std::to_string(Seed());
}

std::string BlockRun::WhoWaits() const {
  std::vector<std::pair<std::string, std::string>> threads_of;  // state, its threads
  for (size_t i = 0; i < fibers_.size();) {
    const std::string state = StateOf(fibers_[i]);
    size_t end = i + 1;
    while (end < fibers_.size() && StateOf(fibers_[end]) == state) ++end;
    const std::string range = end == i + 1 ? std::to_string(i) : std::to_string(i) + "-" + std::to_string(end - 1);
    const auto known =
        std::find_if(threads_of.begin(), threads_of.end(), [&](const auto& entry) { return entry.first == state; });
    if (known == threads_of.end()) {
      threads_of.emplace_back(state, range);
    } else {
      known->second += ", " + range;
    }
    i = end;
  }
  std::string report;
  for (const auto& [state, threads] : threads_of)
    report += (report.empty() ? "" : "; ") + ("threads " + threads) + " " + state;
  return report;
}

}  // namespace c3po::host_cuda
