// A vocabulary of exponentials for every token: in vectors, else they are most of what choosing a token takes.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "server/sampling/softmax.cc"
// As in model/cpu: a lambda cannot hold vectors of instruction sets whose length is not known.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#include "hwy/foreach_target.h"
// After foreach_target.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
#include "server/sampling/softmax.h"

HWY_BEFORE_NAMESPACE();
namespace c3po::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

void WeightsOf(const float* logits, size_t size, double max_logit, double temperature, double* weights) {
  constexpr double kMax = std::numeric_limits<double>::max();  // 0 times infinity would not be a number.
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> narrow;
  const auto top = hn::Set(d, max_logit), factor = hn::Set(d, std::min(1 / temperature, kMax));
  // exp is 0 from -745 on; further down its approximation is not defined.
  const auto lowest = hn::Set(d, -1000.0);
  const auto weights_of = [&](const float* p) HWY_ATTR {
    const auto exponent = hn::Mul(hn::Sub(hn::PromoteTo(d, hn::LoadU(narrow, p)), top), factor);
    return hn::Exp(d, hn::Max(exponent, lowest));
  };
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= size; i += lanes) hn::StoreU(weights_of(logits + i), d, weights + i);
  if (i == size) return;
  float rest[hn::MaxLanes(d)] = {};
  double weights_of_rest[hn::MaxLanes(d)];
  std::memcpy(rest, logits + i, (size - i) * sizeof(float));
  hn::StoreU(weights_of(rest), d, weights_of_rest);
  std::memcpy(weights + i, weights_of_rest, (size - i) * sizeof(double));
}

}  // namespace
}  // namespace c3po::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace c3po {

HWY_EXPORT(WeightsOf);

void SoftmaxWeights(absl::Span<const float> logits, float max_logit, double temperature, absl::Span<double> weights) {
  HWY_DYNAMIC_DISPATCH(WeightsOf)(logits.data(), logits.size(), max_logit, temperature, weights.data());
}

double LogNormalizer(absl::Span<const float> logits) {
  const float top = *std::max_element(logits.begin(), logits.end());
  static thread_local std::vector<double> weights;  // As the sampler's: its pages are not given back each time.
  weights.resize(logits.size());
  SoftmaxWeights(logits, top, 1, absl::MakeSpan(weights));
  return top + std::log(std::accumulate(weights.begin(), weights.end(), 0.0));
}

}  // namespace c3po
#endif  // HWY_ONCE
