#ifndef C3PO_TESTS_SERVER_MODEL_TINY_ON_ATEN_H_
#define C3PO_TESTS_SERVER_MODEL_TINY_ON_ATEN_H_

#include <memory>
#include <string>

#include "server/compute/aten/aten_backend.h"
#include "server/compute/aten/aten_weights.h"
#include "server/compute/aten/rope_tensors.h"
#include "tests/server/model/tiny_model.h"

namespace c3po {

// A golden model's weights packed for libtorch on the CPU, in float32.
inline aten::MoeWeights TinyTensors(const std::string& name, const ModelConfig& config) {
  return aten::PackWeights(config, TinyWeights(name, config), at::kCPU, at::kFloat);
}

template <typename Made = aten::AtenBackend>
std::unique_ptr<Made> TinyOnAten(const std::string& name, const ModelConfig& config,
                                 ElementType kv = ElementType::kFloat32) {
  return std::make_unique<Made>(config, TinyTensors(name, config), aten::MakeRopeTable(config), kv);
}

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_MODEL_TINY_ON_ATEN_H_
