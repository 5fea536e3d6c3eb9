#ifndef C3PO_SERVER_COMPUTE_ATEN_MATRIX_TENSORS_H_
#define C3PO_SERVER_COMPUTE_ATEN_MATRIX_TENSORS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "server/compute/matrix.h"

namespace c3po::aten {

// Between the seam's matrices, tensors and the host. Nothing here waits for the device but ToFloats.

at::ScalarType ScalarTypeOf(ElementType type);
// Throws for anything but float32 and bfloat16.
ElementType ElementTypeOf(at::ScalarType type);

// The rows where they lie. Of a Matrix the caller keeps them alive, of an OwnedMatrix the tensor does.
at::Tensor TensorOf(const Matrix& matrix, at::Device device);
at::Tensor TensorOf(const OwnedMatrix& matrix, at::Device device);
// The rows of x [R, columns], packed. The matrix shares x's memory where x is packed already.
OwnedMatrix MatrixOf(const at::Tensor& x);

// A copy of a host tensor on the device, through pinned memory, so that the host need not wait for the work before it.
// On the CPU: the tensor itself.
at::Tensor Upload(const at::Tensor& host, at::Device device);
// Copies; int64 and float32 [size].
at::Tensor Upload(absl::Span<const int64_t> values, at::Device device);
at::Tensor Upload(absl::Span<const float> values, at::Device device);
// The elements in row-major order, copied to the host.
std::vector<float> ToFloats(const at::Tensor& x);

// One after the other along dimension 0; of one alone, itself.
at::Tensor Join(const std::vector<at::Tensor>& parts);

}  // namespace c3po::aten

#endif  // C3PO_SERVER_COMPUTE_ATEN_MATRIX_TENSORS_H_
