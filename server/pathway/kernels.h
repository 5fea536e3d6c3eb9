#ifndef C3PO_SERVER_PATHWAY_KERNELS_H_
#define C3PO_SERVER_PATHWAY_KERNELS_H_

#include <vector>

#include "absl/types/span.h"

namespace c3po {

// K(a, b) as a function of the Euclidean distance d = ||a - b|| >= 0 and the width sigma > 0.
enum class Kernel {
  kGaussian,    // exp(-d^2 / 2 sigma^2)
  kMatern,      // Matern 5/2: (1 + s + s^2 / 3) exp(-s), s = sqrt(5) d / sigma
  kLinear,      // max(0, 1 - d^2 / 2): the inner product of unit vectors; sigma unused
  kPolynomial,  // (1 + <a, b>)^2 with <a, b> = 1 - d^2 / 2; sigma unused
};

double KernelValue(Kernel kernel, double distance, double bandwidth);

// Kernel values of neighbors at these distances (ascending), none negative and at least one positive: where all vanish
// they count equally. bandwidth <= 0: the last distance is the width, and 1 where that is 0.
std::vector<double> KernelValues(Kernel kernel, absl::Span<const double> distances, double bandwidth);

}  // namespace c3po

#endif  // C3PO_SERVER_PATHWAY_KERNELS_H_
