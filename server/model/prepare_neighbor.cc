// Makes neighbors' fixed states: the prompts before what moves of them, and the rows of the answer trees below, climb
// together to the first critical layer, each weight read once for all of them. There the trees stop; the prompts go on to
// the keys and values of the last layer.

#include <algorithm>
#include <deque>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "index/base/device_failure.h"
#include "index/base/status_macros.h"
#include "server/compute/backend.h"
#include "server/model/moe_model.h"
#include "server/model/objective_memory.h"

namespace c3po {
namespace {

absl::Status CheckCase(const NeighborCase& neighbor, const MovingPart& moving, const ModelShape& shape) {
  if (moving.first_layer < 0 || moving.first_layer >= shape.moe_layers) {
    return absl::InvalidArgumentError(
        absl::StrCat("first critical layer ", moving.first_layer, " is not an MoE layer of the model"));
  }
  if (moving.prompt_positions < 1) return absl::InvalidArgumentError("prompt positions that move must be at least 1");
  if (neighbor.prompt.empty() || neighbor.continuations.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("reference ", neighbor.reference_id, ": empty prompt or no answer"));
  }
  const auto known = [&](int32_t token) { return token >= 0 && token < shape.vocabulary_size; };
  bool all_known = std::all_of(neighbor.prompt.begin(), neighbor.prompt.end(), known);
  size_t longest = 0;
  for (const auto& continuation : neighbor.continuations) {
    if (continuation.empty())
      return absl::InvalidArgumentError(absl::StrCat("reference ", neighbor.reference_id, ": empty answer"));
    longest = std::max(longest, continuation.size());
    all_known = all_known && std::all_of(continuation.begin(), continuation.end(), known);
  }
  if (!all_known) {
    return absl::InvalidArgumentError(absl::StrCat(
        "reference ", neighbor.reference_id, ": a token id is outside the vocabulary of ", shape.vocabulary_size));
  }
  if (neighbor.prompt.size() + longest > static_cast<size_t>(shape.context_window)) {
    return absl::InvalidArgumentError(
        absl::StrCat("reference ", neighbor.reference_id, " is longer than the context window"));
  }
  return absl::OkStatus();
}

// A neighbor whose states are to be made.
struct Unprepared {
  std::string key, reference_id;
  std::vector<int32_t> prompt_beginning;  // before what moves
  std::shared_ptr<MoeNeighborState> state;
  std::shared_ptr<const MoeNeighborState> made;  // null: not yet

  int64_t rows() const { return static_cast<int64_t>(prompt_beginning.size()) + state->tree.rows(); }
};

Unprepared MakeUnprepared(std::string key, const NeighborCase& neighbor, const MovingPart& moving) {
  const absl::Span<const int32_t> prompt(neighbor.prompt);
  const size_t moved = std::min(prompt.size(), static_cast<size_t>(moving.prompt_positions));
  const size_t prefix = prompt.size() - moved;
  auto state = std::make_shared<MoeNeighborState>();
  state->first_layer = moving.first_layer;
  state->prefix_length = static_cast<int>(prefix);
  state->tree = AnswerTree::Build(prompt.subspan(prefix), neighbor.continuations);
  return {std::move(key), neighbor.reference_id, {prompt.begin(), prompt.begin() + prefix}, std::move(state), nullptr};
}

// One pass over some of them, layer by layer. Rows: all prompts' beginnings, then all trees.
class PreparationPass {
 public:
  PreparationPass(const MoeModel& model, NeighborCache& cache, int first_layer, std::vector<Unprepared*> neighbors)
      : model_(model),
        backend_(model.backend()),
        cache_(cache),
        entry_(model.config().moe_layers[static_cast<size_t>(first_layer)]),
        neighbors_(std::move(neighbors)) {
    std::vector<int64_t> tokens;
    std::vector<TreeShape> shapes;
    for (Unprepared* const one : neighbors_) {
      const auto prefix = static_cast<int64_t>(one->prompt_beginning.size());
      one->state->states = backend_.NewReferenceStates(entry_, prefix, one->state->tree.rows(),
                                                       [&cache](int64_t bytes) { return cache.Drop(bytes); });
      tokens.insert(tokens.end(), one->prompt_beginning.begin(), one->prompt_beginning.end());
      shapes.push_back(one->state->shape());
      states_.push_back(one->state->states.get());
    }
    prompt_rows_ = static_cast<int64_t>(tokens.size());
    for (const Unprepared* const one : neighbors_) {
      tokens.insert(tokens.end(), one->state->tree.tokens.begin(), one->state->tree.tokens.end());
    }
    rows_ = backend_.NewPreparationRows(shapes);
    hidden_ = backend_.AllocateHidden(static_cast<int64_t>(tokens.size()));
    backend_.Embed(tokens, hidden_.view());
  }

  int64_t rows() const { return hidden_.rows(); }

  // The next layer; true when nobody reads further. Then all states are whole.
  bool RunLayer() {
    if (layer_ == entry_) LeaveTrees();
    const bool is_last = layer_ + 1 == model_.config().layers;
    const bool keeps = layer_ >= entry_;
    if (keeps && prompt_rows_ == 0) return Finish();
    backend_.PreparationAttention(layer_, *rows_, absl::MakeConstSpan(states_).first(keeps ? states_.size() : 0),
                                  keeps && is_last, hidden_.view());
    if (keeps && is_last) return Finish();
    backend_.PreparationFeedForward(layer_, hidden_.view());
    ++layer_;
    return false;
  }

 private:
  // The trees' rows stop where they enter the first critical layer; the prompts' go on alone.
  void LeaveTrees() {
    int64_t row = prompt_rows_;
    for (const Unprepared* const one : neighbors_) {
      const int64_t rows = one->state->tree.rows();
      backend_.StoreTree(hidden_.view().Rows(row, rows), *one->state->states);
      row += rows;
    }
    const OwnedMatrix prompts = backend_.AllocateHidden(prompt_rows_);
    backend_.Copy(hidden_.view().Rows(0, prompt_rows_), prompts.view());
    hidden_ = prompts;
  }

  bool Finish() {
    for (Unprepared* const one : neighbors_) {
      cache_.Insert(one->key, one->state);
      one->made = one->state;
    }
    return true;
  }

  const MoeModel& model_;
  Backend& backend_;
  NeighborCache& cache_;
  const int entry_;  // decoder layer of the first critical one
  const std::vector<Unprepared*> neighbors_;
  std::vector<ReferenceStates*> states_;
  int64_t prompt_rows_ = 0;
  int layer_ = 0;  // the next
  std::unique_ptr<PreparationRows> rows_;
  OwnedMatrix hidden_;
};

// The neighbors of a request that were not known, pass after pass. Each pass takes as many as their rows allow.
class PreparationBatch {
 public:
  PreparationBatch(const MoeModel& model, NeighborCache& cache, const MovingPart& moving)
      : model_(model), cache_(cache), first_layer_(moving.first_layer) {}

  // Its place among them. A neighbor that is there already keeps its place.
  size_t Add(const NeighborCase& neighbor, const MovingPart& moving, std::string key) {
    const auto same = [&](const Unprepared& one) { return one.key == key; };
    const auto found = std::find_if(neighbors_.begin(), neighbors_.end(), same);
    if (found != neighbors_.end()) return static_cast<size_t>(found - neighbors_.begin());
    neighbors_.push_back(MakeUnprepared(std::move(key), neighbor, moving));
    return neighbors_.size() - 1;
  }
  size_t size() const { return neighbors_.size(); }
  const std::shared_ptr<const MoeNeighborState>& made(size_t i) const { return neighbors_[i].made; }

  // Pieces until neighbor i's states are there (true), or they have cost `row_layers`; what they cost is added to
  // `spent`. A pass has as many rows as a forward pass of that cost has at most, or one neighbor's.
  absl::StatusOr<bool> Advance(size_t i, int64_t row_layers, int64_t& spent) {
    for (const int64_t before = spent; spent - before < row_layers && neighbors_[i].made == nullptr;) {
      try {
        if (!pass_ && !Begin(i, row_layers)) break;
        spent += pass_->rows();
        if (pass_->RunLayer()) pass_.reset();
      } catch (const std::exception& error) {
        Abandon();
        const bool lacks_memory = dynamic_cast<const std::bad_alloc*>(&error) != nullptr;
        // What several have no memory for, one alone may.
        if (lacks_memory && !std::exchange(alone_, true)) continue;
        return FailureOfDeviceOr(
            absl::InternalError(absl::StrCat("preparing reference ", neighbors_[i].reference_id, ": ", error.what())));
      }
    }
    return neighbors_[i].made != nullptr;
  }

 private:
  void Abandon() {
    pass_.reset();
    for (Unprepared& one : neighbors_) {
      if (one.made == nullptr) one.state->states.reset();
    }
  }

  // The next pass, which neighbor i takes part in; false where somebody else has prepared that one meanwhile.
  bool Begin(size_t i, int64_t row_layers) {
    const int64_t rows_max =
        alone_ ? 1 : std::clamp<int64_t>(row_layers / model_.config().layers, 1, kPreparationRowsMax);
    std::vector<Unprepared*> taken;
    int64_t rows = 0;
    for (size_t j = i; j < neighbors_.size(); ++j) {
      Unprepared& one = neighbors_[j];
      if (one.made == nullptr) one.made = cache_.Find(one.key);
      if (one.made != nullptr) continue;
      if (!taken.empty() && rows + one.rows() > rows_max) break;
      rows += one.rows();
      taken.push_back(&one);
    }
    if (neighbors_[i].made != nullptr) return false;
    pass_ = std::make_unique<PreparationPass>(model_, cache_, first_layer_, std::move(taken));
    return true;
  }

  const MoeModel& model_;
  NeighborCache& cache_;
  const int first_layer_;
  std::deque<Unprepared> neighbors_;
  bool alone_ = false;  // A pass lacked memory: the next ones take one neighbor each.
  std::unique_ptr<PreparationPass> pass_;  // null: none has begun, or all that have are done
};

// One neighbor of a batch. Who advances it runs the pass for all that share it.
class Preparation final : public NeighborPreparation {
 public:
  Preparation(std::shared_ptr<PreparationBatch> batch, size_t place, bool hit)
      : batch_(std::move(batch)), place_(place), hit_(hit) {}

  absl::StatusOr<bool> Advance(int64_t row_layers) override { return batch_->Advance(place_, row_layers, spent_); }
  int64_t spent() const override { return spent_; }
  bool hit() const override { return hit_; }
  std::shared_ptr<const NeighborState> state() const override { return batch_->made(place_); }

 private:
  const std::shared_ptr<PreparationBatch> batch_;
  const size_t place_;
  const bool hit_;
  int64_t spent_ = 0;
};

}  // namespace

absl::StatusOr<std::vector<std::unique_ptr<NeighborPreparation>>> MoeModel::NewPreparations(
    absl::Span<const NeighborCase> neighbors, const MovingPart& moving) {
  std::vector<std::unique_ptr<NeighborPreparation>> preparations;
  const auto batch = std::make_shared<PreparationBatch>(*this, neighbor_cache_, moving);
  for (const NeighborCase& neighbor : neighbors) {
    C3PO_RETURN_IF_ERROR(CheckCase(neighbor, moving, shape_));
    std::string key = NeighborCache::KeyOf(neighbor, moving);
    if (auto known = neighbor_cache_.Find(key)) {
      preparations.push_back(std::make_unique<KnownNeighbor>(std::move(known)));
      continue;
    }
    const size_t before = batch->size(), place = batch->Add(neighbor, moving, std::move(key));
    preparations.push_back(std::make_unique<Preparation>(batch, place, /*hit=*/batch->size() == before));
  }
  return preparations;
}

absl::StatusOr<std::unique_ptr<NeighborPreparation>> MoeModel::NewPreparation(const NeighborCase& neighbor,
                                                                              const MovingPart& moving) {
  auto preparations = NewPreparations({&neighbor, 1}, moving);
  if (!preparations.ok()) return preparations.status();
  return std::move(preparations->front());
}

}  // namespace c3po
