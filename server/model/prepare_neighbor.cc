// Makes a neighbor's fixed states: the prompt before what moves of it, and the rows of the answer tree below, climb
// together to the first critical layer, each weight read once for both. There the tree stops; the prompt goes on to the
// keys and values of the last layer.

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "index/base/device_failure.h"
#include "index/base/status_macros.h"
#include "server/compute/backend.h"
#include "server/model/moe_model.h"

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

class Preparation final : public NeighborPreparation {
 public:
  Preparation(const MoeModel& model, NeighborCache& cache, std::string key, const NeighborCase& neighbor,
              const MovingPart& moving)
      : model_(model),
        backend_(model.backend()),
        cache_(cache),
        key_(std::move(key)),
        reference_id_(neighbor.reference_id),
        entry_(model.config().moe_layers[moving.first_layer]) {
    const absl::Span<const int32_t> prompt(neighbor.prompt);
    const size_t moved = std::min(prompt.size(), static_cast<size_t>(moving.prompt_positions));
    prefix_ = static_cast<int64_t>(prompt.size() - moved);
    state_->first_layer = moving.first_layer;
    state_->prefix_length = static_cast<int>(prefix_);
    state_->tree = AnswerTree::Build(prompt.subspan(prompt.size() - moved), neighbor.continuations);
    state_->states = backend_.NewReferenceStates(entry_, prefix_, state_->tree.rows(),
                                                 [&cache](int64_t bytes) { return cache.Drop(bytes); });
    rows_ = backend_.NewPreparationRows({state_->shape()});
    std::vector<int64_t> tokens(prompt.begin(), prompt.begin() + prefix_);
    tokens.insert(tokens.end(), state_->tree.tokens.begin(), state_->tree.tokens.end());
    hidden_ = backend_.AllocateHidden(static_cast<int64_t>(tokens.size()));
    backend_.Embed(tokens, hidden_.view());
  }

  absl::StatusOr<bool> Advance(int64_t row_layers) override {
    try {
      for (const int64_t before = spent_; spent_ - before < row_layers;) {
        spent_ += hidden_.rows();
        if (!RunLayer()) continue;
        hidden_ = OwnedMatrix();
        rows_.reset();
        cache_.Insert(key_, state_);
        return true;
      }
      return false;
    } catch (const std::exception& error) {
      return FailureOfDeviceOr(
          absl::InternalError(absl::StrCat("preparing reference ", reference_id_, ": ", error.what())));
    }
  }

  int64_t spent() const override { return spent_; }
  bool hit() const override { return false; }
  std::shared_ptr<const NeighborState> state() const override { return state_; }

 private:
  // The tree's rows stop where they enter the first critical layer; the prompt's go on alone.
  void LeaveTree() {
    const int64_t rows = state_->tree.rows();
    backend_.StoreTree(hidden_.view().Rows(prefix_, rows), *state_->states);
    const OwnedMatrix prompt = backend_.AllocateHidden(prefix_);
    backend_.Copy(hidden_.view().Rows(0, prefix_), prompt.view());
    hidden_ = prompt;
  }

  // True when nobody reads further.
  bool RunLayer() {
    if (layer_ == entry_) LeaveTree();
    if (layer_ == entry_ && prefix_ == 0) return true;
    const bool is_last = layer_ + 1 == model_.config().layers;
    const bool keeps = layer_ >= entry_;
    ReferenceStates* const states[] = {state_->states.get()};
    backend_.PreparationAttention(layer_, *rows_, absl::MakeConstSpan(states).first(keeps ? 1 : 0), keeps && is_last,
                                  hidden_.view());
    if (keeps && is_last) return true;
    backend_.PreparationFeedForward(layer_, hidden_.view());
    ++layer_;
    return false;
  }

  const MoeModel& model_;
  Backend& backend_;
  NeighborCache& cache_;
  const std::string key_, reference_id_;
  const int entry_;  // decoder layer of the first critical one
  int64_t prefix_ = 0;
  int layer_ = 0;  // the next
  int64_t spent_ = 0;
  std::unique_ptr<PreparationRows> rows_;
  OwnedMatrix hidden_;
  const std::shared_ptr<MoeNeighborState> state_ = std::make_shared<MoeNeighborState>();
};

}  // namespace

absl::StatusOr<std::unique_ptr<NeighborPreparation>> MoeModel::NewPreparation(const NeighborCase& neighbor,
                                                                              const MovingPart& moving) {
  C3PO_RETURN_IF_ERROR(CheckCase(neighbor, moving, shape_));
  std::string key = NeighborCache::KeyOf(neighbor, moving);
  if (auto known = neighbor_cache_.Find(key)) {
    return std::unique_ptr<NeighborPreparation>(std::make_unique<KnownNeighbor>(std::move(known)));
  }
  try {
    return std::unique_ptr<NeighborPreparation>(
        std::make_unique<Preparation>(*this, neighbor_cache_, std::move(key), neighbor, moving));
  } catch (const std::exception& error) {
    return FailureOfDeviceOr(
        absl::InternalError(absl::StrCat("preparing reference ", neighbor.reference_id, ": ", error.what())));
  }
}

}  // namespace c3po
