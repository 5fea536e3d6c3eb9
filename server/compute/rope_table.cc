#include "server/compute/rope_table.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace c3po {
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

}  // namespace

RopeTable RopeTable::Make(const ModelConfig& config, at::Device device) {
  const auto options = at::TensorOptions(at::kFloat);
  const at::Tensor exponent = at::arange(0, config.rope_dim, 2, options) / config.rope_dim;
  const at::Tensor frequency = Scaled(1.0 / at::pow(at::Scalar(config.rope_theta), exponent), config);
  const at::Tensor angle = at::outer(at::arange(config.context_window, options), frequency);
  const double factor = config.rope_scaling.attention_factor;
  if (factor == 1) return {at::cos(angle).to(device), at::sin(angle).to(device)};
  return {(at::cos(angle) * factor).to(device), (at::sin(angle) * factor).to(device)};
}

RopeTable RopeTable::Select(const at::Tensor& positions, at::ScalarType dtype) const {
  return {cos.index_select(0, positions).unsqueeze(1).to(dtype), sin.index_select(0, positions).unsqueeze(1).to(dtype)};
}

void RopeTable::CopyRow(int64_t position, float* cos_row, float* sin_row) const {
  std::copy_n(cos.const_data_ptr<float>() + position * half(), half(), cos_row);
  std::copy_n(sin.const_data_ptr<float>() + position * half(), half(), sin_row);
}

}  // namespace c3po
