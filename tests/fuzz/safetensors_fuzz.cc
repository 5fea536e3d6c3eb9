// One .safetensors file: it is refused, or every view lies inside it and has the size that dtype and shape say.

#include "server/weights/safetensors_file.h"
#include "tests/fuzz/fuzz_target.h"

C3PO_FUZZ_TARGET(input) {
  const c3po::MemoryFile memory(input);
  const auto file = c3po::SafetensorsFile::Open(memory.path());
  if (!file.ok()) {
    C3PO_FUZZ_CHECK(!file.status().message().empty());
    return;
  }
  unsigned sum = 0;
  for (const std::string& name : (*file)->names()) {
    const c3po::TensorView* view = (*file)->Find(name);
    uint64_t bytes = c3po::DTypeBytes(view->dtype);
    for (const int64_t dimension : view->shape) bytes *= static_cast<uint64_t>(dimension);
    C3PO_FUZZ_CHECK(bytes == view->bytes.size());
    for (const std::byte byte : view->bytes) sum += std::to_integer<unsigned>(byte);
  }
  C3PO_FUZZ_CHECK(sum <= 255 * input.size());
}
