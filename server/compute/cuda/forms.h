#ifndef C3PO_SERVER_COMPUTE_CUDA_FORMS_H_
#define C3PO_SERVER_COMPUTE_CUDA_FORMS_H_

#include <type_traits>

#include "index/base/cuda/runtime.h"
#include "server/compute/cuda/layout.h"

namespace c3po::cuda {

// What a product is compiled for: how its weights lie (layout.h), and in how many planes the rows that it multiplies.
// Of 16 bits weights have as many planes as rows: bfloat16, or float32.
enum class Form { kBfloat16, kFloat32, kInt8, kInt8Float32, kInt4, kInt4Float32 };

constexpr int BitsOf(Form form) {
  if (form == Form::kBfloat16 || form == Form::kFloat32) return 16;
  return form == Form::kInt8 || form == Form::kInt8Float32 ? 8 : 4;
}
constexpr int PlanesOf(Form form) {
  return form == Form::kFloat32 || form == Form::kInt8Float32 || form == Form::kInt4Float32 ? 3 : 1;
}

// Returns call(form), whose argument is an std::integral_constant.
template <class Call>
Error WithForm(const PackedWeights& w, const Call& call) {
  const bool one = w.planes == 1;
  if (w.bits == 16) {
    return one ? call(std::integral_constant<Form, Form::kBfloat16>())
               : call(std::integral_constant<Form, Form::kFloat32>());
  }
  if (w.bits == 8) {
    return one ? call(std::integral_constant<Form, Form::kInt8>())
               : call(std::integral_constant<Form, Form::kInt8Float32>());
  }
  return one ? call(std::integral_constant<Form, Form::kInt4>())
             : call(std::integral_constant<Form, Form::kInt4Float32>());
}

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_FORMS_H_
