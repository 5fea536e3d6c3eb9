#include "server/compute/cpu/cpu_queue.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>

#include <vector>

#include "server/compute/cpu/matrix_products.h"
#include "server/compute/cpu/thread_pool.h"

namespace c3po::cpu {

void CpuQueue::Run(absl::FunctionRef<void()> work) {
  const ThreadPool::Guest guest(ThreadPool::Shared());
  const c10::InferenceMode inference;
  work();
}

at::Tensor CpuQueue::FromHost(const at::Tensor& host) { return host; }

at::Tensor CpuQueue::ToHost(const at::Tensor& x) { return x.contiguous(); }

at::Tensor CpuQueue::Linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  TORCH_CHECK(weight.dim() == 2 && x.size(-1) == weight.size(1) && bias.sizes() == weight.sizes().slice(0, 1),
              "a product of shapes ", x.sizes(), ", ", weight.sizes(), " and ", bias.sizes());
  const bool bfloat16 = weight.scalar_type() == at::kBFloat16;
  TORCH_CHECK(
      x.scalar_type() == at::kFloat && (bfloat16 || weight.scalar_type() == at::kFloat) && weight.is_contiguous(),
      "a product of anything but float32 rows with a weight of float32 or bfloat16");
  const int64_t out = weight.size(0), in = weight.size(1);
  const at::Tensor rows = x.reshape({-1, in}).contiguous(), y = at::empty({rows.size(0), out}, rows.options());
  MultiplyTransposed({{{rows.const_data_ptr<float>(), in, rows.size(0), nullptr},
                       {weight.const_data_ptr(), bfloat16, out, in},
                       {y.mutable_data_ptr<float>(), out, nullptr}}});
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = out;
  return y.add_(bias).view(shape);
}

}  // namespace c3po::cpu
