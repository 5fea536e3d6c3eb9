#ifndef C3PO_TESTS_SERVER_MODEL_OTHER_BACKEND_H_
#define C3PO_TESTS_SERVER_MODEL_OTHER_BACKEND_H_

#include <memory>
#include <string>

#include "server/compute/backend.h"
#include "server/model/config/model_config.h"

namespace c3po {

// The backend that tests hold against the CPU's kernels, with the weights of a golden model in float32. Which one it is
// is a matter of linking: libtorch in server_model_test, the GPU's kernels on their host model in
// server_model_cuda_test.
std::unique_ptr<Backend> OtherBackend(const std::string& name, const ModelConfig& config);

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_MODEL_OTHER_BACKEND_H_
