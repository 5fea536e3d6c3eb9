#ifndef C3PO_SERVER_COMPUTE_MATRIX_H_
#define C3PO_SERVER_COMPUTE_MATRIX_H_

#include <cstdint>
#include <memory>
#include <utility>

namespace c3po {

enum class ElementType { kFloat32, kBfloat16 };

// How a backend holds the large matrices of weights: element by element, or quantized, as 8 or 4 bits a weight and a
// scale for every 32 of a row (server/compute/cpu/quantized_panels.h).
enum class WeightFormat { kElements, kInt8, kInt4 };

constexpr int64_t BytesOf(ElementType type) { return type == ElementType::kFloat32 ? 4 : 2; }

// Rows in a backend's memory, `stride` elements apart. A view: it owns nothing, and only its backend may follow `data`.
struct Matrix {
  void* data = nullptr;
  ElementType type = ElementType::kFloat32;
  int64_t rows = 0, columns = 0;
  int64_t stride = 0;  // at least columns

  Matrix Rows(int64_t begin, int64_t count) const {
    return {static_cast<char*>(data) + begin * stride * BytesOf(type), type, count, columns, stride};
  }
  bool empty() const { return data == nullptr; }
  int64_t bytes() const { return rows * columns * BytesOf(type); }
};

// Packed rows with the memory they lie in, which lives as long as any copy does. A value; copies share the rows.
class OwnedMatrix {
 public:
  OwnedMatrix() = default;
  // `view` lies in what `owner` keeps alive.
  OwnedMatrix(Matrix view, std::shared_ptr<void> owner) : view_(view), owner_(std::move(owner)) {}

  const Matrix& view() const { return view_; }
  int64_t rows() const { return view_.rows; }
  bool empty() const { return view_.empty(); }
  // Shares the memory of the whole.
  OwnedMatrix Rows(int64_t begin, int64_t count) const { return {view_.Rows(begin, count), owner_}; }

 private:
  Matrix view_;
  std::shared_ptr<void> owner_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_COMPUTE_MATRIX_H_
