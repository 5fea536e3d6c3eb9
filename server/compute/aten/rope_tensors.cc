#include "server/compute/aten/rope_tensors.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace c3po::aten {
namespace {

constexpr double kTwoPi = 6.283185307179586;

at::Tensor Llama3(const at::Tensor& frequency, const RopeScaling& scaling) {
  const double c = scaling.original_context, low = scaling.low_frequency_factor, high = scaling.high_frequency_factor;
  const at::Tensor waves = frequency * (c / kTwoPi);  // that fit into the original context
  const at::Tensor kept = ((waves - low) / (high - low)).clamp(0, 1);
  return frequency * (kept + (1 - kept) / scaling.factor);
}

at::Tensor Yarn(const at::Tensor& frequency, double theta, const RopeScaling& scaling) {
  const int64_t half = frequency.size(0);
  // The index of the frequency that turns `times` times within the original context.
  const auto index = [&](double times) {
    return static_cast<double>(half) * std::log(scaling.original_context / (times * kTwoPi)) / std::log(theta);
  };
  const double low = std::max(std::floor(index(scaling.beta_fast)), 0.0);
  const double high = std::min(std::ceil(index(scaling.beta_slow)), static_cast<double>(2 * half - 1));
  const double width = high == low ? 1e-3 : high - low;
  const at::Tensor stretched = ((at::arange(half, frequency.options()) - low) / width).clamp(0, 1);
  return frequency / scaling.factor * stretched + frequency * (1 - stretched);
}

at::Tensor Scaled(const at::Tensor& frequency, const ModelConfig& config) {
  const RopeScaling& scaling = config.rope_scaling;
  switch (scaling.type) {
    case RopeScaling::Type::kNone:
      return frequency;
    case RopeScaling::Type::kLinear:
      return frequency / scaling.factor;
    case RopeScaling::Type::kLlama3:
      return Llama3(frequency, scaling);
    case RopeScaling::Type::kYarn:
      return Yarn(frequency, config.rope_theta, scaling);
  }
  return frequency;
}

// The tensor's entries, which live as long as the result or a copy of it does.
std::shared_ptr<const float> FloatsOf(const at::Tensor& x) {
  const at::Tensor packed = x.contiguous();
  return {packed.const_data_ptr<float>(), [packed](const float*) {}};
}

}  // namespace

RopeTable MakeRopeTable(const ModelConfig& config) {
  const auto options = at::TensorOptions(at::kFloat);
  const at::Tensor exponent = at::arange(0, config.rope_dim, 2, options) / config.rope_dim;
  const at::Tensor frequency = Scaled(1.0 / at::pow(at::Scalar(config.rope_theta), exponent), config);
  const at::Tensor angle = at::outer(at::arange(config.context_window, options), frequency);
  const double factor = config.rope_scaling.attention_factor;
  const auto scaled = [factor](const at::Tensor& x) { return FloatsOf(factor == 1 ? x : x * factor); };
  return {scaled(at::cos(angle)), scaled(at::sin(angle)), angle.size(0), angle.size(1)};
}

RopeTensors RopeTensors::Of(const RopeTable& table, at::Device device) {
  const auto view = [&](const std::shared_ptr<const float>& entries) {
    const at::Tensor host = at::from_blob(
        const_cast<float*>(entries.get()), {table.positions, table.half}, [entries](void*) {}, at::kFloat);
    return host.to(device);
  };
  return {view(table.cos), view(table.sin)};
}

RopeTensors RopeTensors::Select(const at::Tensor& positions, at::ScalarType dtype) const {
  return {cos.index_select(0, positions).unsqueeze(1).to(dtype), sin.index_select(0, positions).unsqueeze(1).to(dtype)};
}

}  // namespace c3po::aten
