#ifndef C3PO_SERVER_MODEL_CONFIG_EXPERT_CHOICE_H_
#define C3PO_SERVER_MODEL_CONFIG_EXPERT_CHOICE_H_

#include <cstdint>

#include "server/model/config/model_config.h"

namespace c3po {

// How many experts a token may be given: those of the groups that it may choose among.
int SelectableExperts(const ModelConfig& config);

// The experts of one token, from its probabilities p [E], a softmax or what replaced it. Of the groups those
// groups_per_token with the largest maximum may be chosen; of their experts the k with the largest p. What is not a
// number counts as the largest, and so is seen in the result. Of equals, the lowest numbers.
//   w = p where chosen, else 0;  w /= sum(w) where norm_topk_prob;  w *= routed_scaling_factor
// selected [k]: the largest p first; null where k = E and nobody asks. weights [E]. `total`: the sum above, by
// ascending expert; null where weights are not normalized. k in [1, SelectableExperts]. Thread-safe.
void ChooseExperts(const ModelConfig& config, int64_t k, const float* p, int64_t* selected, float* weights,
                   float* total);

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_CONFIG_EXPERT_CHOICE_H_
