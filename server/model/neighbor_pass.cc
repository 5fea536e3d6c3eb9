#include "server/model/neighbor_pass.h"

#include <algorithm>
#include <utility>

namespace c3po {

NeighborPass::NeighborPass(const MoeModel& model, std::vector<Member> members, bool with_gradient)
    : model_(model),
      backend_(model.backend()),
      members_(std::move(members)),
      with_gradient_(with_gradient),
      entry_(members_.front().rows->entry()),
      first_row_{0},
      first_sum_{0},
      tapes_(model.config().layers - entry_),
      first_tapes_(members_.size()),
      layer_(entry_),
      moe_layer_(members_.front().rows->first_layer()) {
  for (const Member& member : members_) {
    first_row_.push_back(first_row_.back() + member.rows->rows());
    first_sum_.push_back(first_sum_.back() + member.routing->values.layers);
    trees_.push_back(&member.rows->trees());
  }
}

std::vector<RoutingRows> NeighborPass::Routing(size_t count, int moe_layer) const {
  std::vector<RoutingRows> routing;
  for (size_t i = 0; i < count; ++i) {
    members_[i].rows->AppendRouting(*members_[i].routing, moe_layer, first_row_[i], first_sum_[i], routing);
  }
  return routing;
}

std::vector<RoutingRows> NeighborPass::OwnRouting(size_t member, int moe_layer) const {
  std::vector<RoutingRows> routing;
  members_[member].rows->AppendRouting(*members_[member].routing, moe_layer, 0, first_sum_[member], routing);
  return routing;
}

bool NeighborPass::ForwardLayer() {
  std::vector<OwnedMatrix> parts;
  if (joined_ > 0) {
    LayerTapes& tapes = tapes_[layer_ - entry_];
    const OwnedMatrix middle =
        backend_.TreeAttention(layer_, Trees(joined_), hidden_, with_gradient_ ? &tapes.attention : nullptr);
    const std::vector<RoutingRows> routing = IsMoe(layer_) ? Routing(joined_, moe_layer_) : std::vector<RoutingRows>();
    parts.push_back(backend_.FeedForward(layer_, routing, middle, with_gradient_ ? &tapes.feed_forward : nullptr));
  }
  for (; joined_ < members_.size() && members_[joined_].rows->entry() == layer_; ++joined_) {
    parts.push_back(members_[joined_].rows->RunFirstLayer(OwnRouting(joined_, moe_layer_),
                                                          with_gradient_ ? &first_tapes_[joined_] : nullptr));
  }
  if (parts.size() == 1) {
    hidden_ = std::move(parts[0]);
  } else {
    hidden_ = backend_.AllocateHidden(RowsOf(joined_));
    int64_t row = 0;
    for (const OwnedMatrix& part : parts) {
      backend_.Copy(part.view(), hidden_.view().Rows(row, part.rows()));
      row += part.rows();
    }
  }
  spent_ += RowsOf(joined_);
  if (IsMoe(layer_)) ++moe_layer_;
  return ++layer_ == model_.config().layers;
}

void NeighborPass::BeginBackward(OwnedMatrix dhidden) {
  const int64_t experts = model_.config().experts;
  const OwnedMatrix sums = backend_.Allocate(ElementType::kFloat32, sum_rows(), experts);
  backend_.Write(std::vector<float>(static_cast<size_t>(sum_rows() * experts)), sums.view());
  BeginBackward(std::move(dhidden), sums);
}

void NeighborPass::BeginBackward(OwnedMatrix dhidden, OwnedMatrix sums) {
  dhidden_ = std::move(dhidden);
  sums_ = std::move(sums);
  layer_ = model_.config().layers - 1;
  moe_layer_ = model_.shape().moe_layers - 1;
}

bool NeighborPass::BackwardLayer() {
  spent_ += 2 * RowsOf(joined_);
  for (; joined_ > 0 && members_[joined_ - 1].rows->entry() == layer_; --joined_) {
    const size_t i = joined_ - 1;
    members_[i].rows->FirstLayerGradient(OwnRouting(i, moe_layer_), *first_tapes_[i], Slice(dhidden_, i), sums_.view());
    first_tapes_[i].reset();
  }
  if (joined_ == 0) return true;
  LayerTapes& tapes = tapes_[layer_ - entry_];
  const std::vector<RoutingRows> routing = IsMoe(layer_) ? Routing(joined_, moe_layer_) : std::vector<RoutingRows>();
  const OwnedMatrix dmiddle = backend_.FeedForwardBackward(layer_, routing, *tapes.feed_forward,
                                                           dhidden_.Rows(0, RowsOf(joined_)), sums_.view());
  dhidden_ = backend_.TreeAttentionBackward(layer_, Trees(joined_), *tapes.attention, dmiddle);
  tapes = LayerTapes();  // Nobody reads it again.
  if (IsMoe(layer_)) --moe_layer_;
  --layer_;
  return false;
}

std::vector<Pathway> NeighborPass::gradients() const {
  std::vector<float> sums(static_cast<size_t>(sum_rows() * model_.config().experts));
  backend_.Read(sums_.view(), absl::MakeSpan(sums));
  return GradientsOf(sums);
}

std::vector<Pathway> NeighborPass::GradientsOf(absl::Span<const float> sums) const {
  const int64_t experts = model_.config().experts;
  std::vector<Pathway> gradients;
  for (size_t i = 0; i < members_.size(); ++i) {
    const Pathway& values = members_[i].routing->values;
    Pathway& gradient = gradients.emplace_back(values.layers, values.experts);
    std::copy(sums.begin() + first_sum_[i] * experts, sums.begin() + first_sum_[i + 1] * experts,
              gradient.weights.begin());
  }
  return gradients;
}

int64_t NeighborPass::cost() const {
  int64_t up = 0;
  for (const Member& member : members_) up += member.rows->rows() * (model_.config().layers - member.rows->entry());
  return with_gradient_ ? 3 * up : up;
}

}  // namespace c3po
