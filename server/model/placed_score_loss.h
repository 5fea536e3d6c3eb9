#ifndef C3PO_SERVER_MODEL_PLACED_SCORE_LOSS_H_
#define C3PO_SERVER_MODEL_PLACED_SCORE_LOSS_H_

#include <cstddef>
#include <memory>
#include <vector>

#include "server/compute/whole_passes.h"
#include "server/model/score_loss.h"

namespace c3po {

// `loss`, which needs no base any more, where the backend computes. lengths [case][continuation]: how many targets each
// has, one continuation's after the other's; first_same: of each target the first one of the same row and token. Engine
// thread only, as the backend is.
std::shared_ptr<const TargetLoss> PlaceScoreLoss(const ScoreLoss& loss, const std::vector<std::vector<int>>& lengths,
                                                 const std::vector<size_t>& first_same, WholePasses& passes);

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_PLACED_SCORE_LOSS_H_
