#include "server/compute/aten/products.h"

#include <ATen/ATen.h>

#include <vector>

#include "server/compute/aten/matrix_tensors.h"

namespace c3po::aten {
namespace {

// As x is multiplied by it.
at::Tensor OperandOf(const at::Tensor& w, const at::Tensor& x) { return w.to(x.scalar_type()); }

}  // namespace

at::Tensor MatMulTransposed(const at::Tensor& x, const at::Tensor& w) { return at::linear(x, OperandOf(w, x)); }

at::Tensor MatMul(const at::Tensor& a, const at::Tensor& w) { return at::matmul(a, OperandOf(w, a)); }

at::Tensor Project(const at::Tensor& x, const at::Tensor& w, const at::Tensor& bias) {
  const at::Tensor y = MatMulTransposed(x, w);
  return bias.defined() ? y + bias : y;
}

at::Tensor GateUpOf(const ExpertWeights& networks, const at::Tensor& x) { return OperandOf(networks.gate_up, x); }

at::Tensor DownOf(const ExpertWeights& networks, const at::Tensor& x) {
  return OperandOf(networks.down, x).view({-1, networks.count(), networks.neurons()});
}

bool CanMultiplyGroups(const at::Tensor& x, int64_t out) {
  constexpr int64_t kWord = 8;  // of 16 bytes: what a row's stride must be a multiple of
  return x.is_cuda() && x.scalar_type() == at::kBFloat16 && x.size(1) % kWord == 0 && out % kWord == 0;
}

at::Tensor MultiplyGroups(const at::Tensor& x, const at::Tensor& matrices, const at::Tensor& ends) {
  return at::_grouped_mm(x, matrices, ends);
}

at::Tensor MultiplyEachGroup(const at::Tensor& x, const at::Tensor& matrices, const at::Tensor& ends) {
  const at::Tensor host = ends.to(at::kCPU);
  const auto* end = host.const_data_ptr<int32_t>();
  std::vector<at::Tensor> parts;
  int64_t begin = 0;
  for (int64_t g = 0; g < host.numel(); begin = end[g++]) {
    if (begin < end[g]) parts.push_back(at::matmul(x.narrow(0, begin, end[g] - begin), matrices[g]));
  }
  return parts.empty() ? at::empty({0, matrices.size(2)}, x.options()) : Join(parts);
}

}  // namespace c3po::aten
