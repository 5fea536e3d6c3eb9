#include "tests/index/cuda/host_index_device.h"

#include "tests/index/cuda/tested_index_device.h"

namespace c3po {

std::shared_ptr<IndexDevice> OpenTestedIndexDevice(int64_t budget_bytes) {
  const auto host = std::make_shared<HostIndexDevice>(budget_bytes);
  return {host, host->device.get()};
}

}  // namespace c3po
