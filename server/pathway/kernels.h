#ifndef C3PO_SERVER_PATHWAY_KERNELS_H_
#define C3PO_SERVER_PATHWAY_KERNELS_H_

#include <vector>

#include "absl/types/span.h"
#include "index/types/optimization_terms.h"

namespace c3po {

// The formula that optimization_terms.h gives of `kernel`, at a distance d >= 0; bandwidth: sigma > 0.
double KernelValue(Kernel kernel, double distance, double bandwidth);

// Kernel values of neighbors at these distances (ascending), none negative and at least one positive: where all vanish
// they count equally. bandwidth <= 0: the last distance is the width, and 1 where that is 0.
std::vector<double> KernelValues(Kernel kernel, absl::Span<const double> distances, double bandwidth);

}  // namespace c3po

#endif  // C3PO_SERVER_PATHWAY_KERNELS_H_
