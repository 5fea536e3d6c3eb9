#ifndef C3PO_SERVER_TYPES_ROUTING_OVERRIDE_H_
#define C3PO_SERVER_TYPES_ROUTING_OVERRIDE_H_

#include <vector>

#include "index/types/optimization_terms.h"
#include "index/types/pathway.h"

namespace c3po {

// What one batch row tells the routers of some MoE layers. A value: it travels with the row as an argument of the
// forward pass and is never state of the model, so that rows with different pathways share one batch.
struct RoutingOverride {
  enum class Kind {
    kWeights,     // values replace softmax(router logits); rows on the simplex. Then top-k as configured.
    kLogitShift,  // values are added to the router's logits, any finite number.
  };
  Kind kind = Kind::kWeights;
  std::vector<int> layers;  // MoE layer indices, ascending, distinct.
  Pathway values;           // [layers.size(), experts]; row i belongs to layers[i].
};

inline RoutingOverride::Kind OverrideKindOf(ApplicationRule rule) {
  return rule == ApplicationRule::kRouterShift ? RoutingOverride::Kind::kLogitShift : RoutingOverride::Kind::kWeights;
}

}  // namespace c3po

#endif  // C3PO_SERVER_TYPES_ROUTING_OVERRIDE_H_
