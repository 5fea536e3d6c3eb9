#ifndef C3PO_SERVER_PATHWAY_ADAM_H_
#define C3PO_SERVER_PATHWAY_ADAM_H_

#include <cmath>
#include <cstddef>
#include <vector>

namespace c3po {

// Adam's direction (Kingma and Ba, arXiv 1412.6980), beta 0.9 and 0.999, epsilon 1e-8, with bias correction:
//   m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,  direction = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + epsilon)
// The caller multiplies by its rate and subtracts. An entry whose gradient was always 0 has direction 0. A plain value.
class Adam {
 public:
  explicit Adam(size_t size) : direction_(size), mean_(size), square_(size) {}

  // `gradient` has `size` entries; the result is good until the next call.
  template <typename Number>
  const std::vector<double>& Direction(const std::vector<Number>& gradient) {
    constexpr double kBeta1 = 0.9, kBeta2 = 0.999, kEpsilon = 1e-8;
    ++step_;
    for (size_t i = 0; i < direction_.size(); ++i) {
      const double g = gradient[i];
      mean_[i] = kBeta1 * mean_[i] + (1 - kBeta1) * g;
      square_[i] = kBeta2 * square_[i] + (1 - kBeta2) * g * g;
      const double mean = mean_[i] / (1 - std::pow(kBeta1, step_)), square = square_[i] / (1 - std::pow(kBeta2, step_));
      direction_[i] = mean / (std::sqrt(square) + kEpsilon);
    }
    return direction_;
  }

 private:
  std::vector<double> direction_, mean_, square_;
  int step_ = 0;
};

}  // namespace c3po

#endif  // C3PO_SERVER_PATHWAY_ADAM_H_
