#include "server/pathway/kernels.h"

#include <algorithm>
#include <cmath>

namespace c3po {

double KernelValue(Kernel kernel, double distance, double bandwidth) {
  const double inner = 1 - distance * distance / 2;
  switch (kernel) {
    case Kernel::kGaussian:
      return std::exp(-distance * distance / (2 * bandwidth * bandwidth));
    case Kernel::kMatern: {
      const double s = std::sqrt(5.0) * distance / bandwidth;
      return (1 + s + s * s / 3) * std::exp(-s);
    }
    case Kernel::kLinear:
      return std::max(0.0, inner);
    case Kernel::kPolynomial:
      return (1 + inner) * (1 + inner);
  }
  return 0;
}

std::vector<double> KernelValues(Kernel kernel, absl::Span<const double> distances, double bandwidth) {
  if (!(bandwidth > 0)) bandwidth = distances.empty() || !(distances.back() > 0) ? 1 : distances.back();
  std::vector<double> values;
  double sum = 0;
  for (const double distance : distances) {
    values.push_back(KernelValue(kernel, distance, bandwidth));
    sum += values.back();
  }
  if (!(sum > 0)) std::fill(values.begin(), values.end(), 1.0);
  return values;
}

}  // namespace c3po
