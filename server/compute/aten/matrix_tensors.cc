#include "server/compute/aten/matrix_tensors.h"

#include <ATen/ATen.h>

#include <memory>

namespace c3po::aten {
namespace {

at::TensorOptions OptionsOf(const Matrix& matrix, at::Device device) {
  return at::TensorOptions(ScalarTypeOf(matrix.type)).device(device);
}

}  // namespace

at::ScalarType ScalarTypeOf(ElementType type) { return type == ElementType::kFloat32 ? at::kFloat : at::kBFloat16; }

ElementType ElementTypeOf(at::ScalarType type) {
  TORCH_CHECK(type == at::kFloat || type == at::kBFloat16, "activations are float32 or bfloat16, not ", type);
  return type == at::kFloat ? ElementType::kFloat32 : ElementType::kBfloat16;
}

// Both are told the device, so that libtorch need not ask the driver whose memory it is.
at::Tensor TensorOf(const Matrix& matrix, at::Device device) {
  const int64_t sizes[] = {matrix.rows, matrix.columns}, strides[] = {matrix.stride, 1};
  return at::for_blob(matrix.data, sizes)
      .strides(strides)
      .options(OptionsOf(matrix, device))
      .target_device(device)
      .make_tensor();
}

at::Tensor TensorOf(const OwnedMatrix& matrix, at::Device device) {
  const Matrix& view = matrix.view();
  const int64_t sizes[] = {view.rows, view.columns}, strides[] = {view.stride, 1};
  return at::for_blob(view.data, sizes)
      .strides(strides)
      .deleter([matrix](void*) {})  // The copy owns the rows.
      .options(OptionsOf(view, device))
      .target_device(device)
      .make_tensor();
}

OwnedMatrix MatrixOf(const at::Tensor& x) {
  TORCH_CHECK(x.dim() == 2, "a matrix has two dimensions, not ", x.dim());
  auto rows = std::make_shared<at::Tensor>(x.contiguous());
  const Matrix view{rows->mutable_data_ptr(), ElementTypeOf(x.scalar_type()), x.size(0), x.size(1), x.size(1)};
  return {view, std::move(rows)};
}

at::Tensor Upload(const at::Tensor& host, at::Device device) {
  if (device.is_cpu()) return host;
  if (host.numel() == 0) return at::empty(host.sizes(), host.options().device(device));
  // The pinned block is not handed out again before the copy is done: libtorch's host allocator sees to that.
  const at::Tensor pinned = at::empty(host.sizes(), host.options().pinned_memory(true)).copy_(host);
  return pinned.to(device, host.scalar_type(), /*non_blocking=*/true);
}

at::Tensor Upload(absl::Span<const int64_t> values, at::Device device) {
  return Upload(at::tensor(at::ArrayRef<int64_t>(values.data(), values.size()), at::kLong), device);
}

at::Tensor Upload(absl::Span<const float> values, at::Device device) {
  return Upload(at::tensor(at::ArrayRef<float>(values.data(), values.size()), at::kFloat), device);
}

std::vector<float> ToFloats(const at::Tensor& x) {
  const at::Tensor cpu = x.to(at::kCPU, at::kFloat).contiguous();
  return {cpu.const_data_ptr<float>(), cpu.const_data_ptr<float>() + cpu.numel()};
}

at::Tensor Join(const std::vector<at::Tensor>& parts) { return parts.size() == 1 ? parts[0] : at::cat(parts); }

}  // namespace c3po::aten
