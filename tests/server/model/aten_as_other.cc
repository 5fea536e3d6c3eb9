#include "tests/server/model/other_backend.h"
#include "tests/server/model/tiny_on_aten.h"

namespace c3po {

std::unique_ptr<Backend> OtherBackend(const std::string& name, const ModelConfig& config) {
  return TinyOnAten(name, config);
}

}  // namespace c3po
