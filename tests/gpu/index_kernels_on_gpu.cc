// A GPU for the tests of the index: the kernels by the names that their tests call: those of libc3po_cuda.so.

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "index/search/cuda/index_kernels.h"
#include "tests/gpu/kernel_device_on_gpu.h"
#include "tests/gpu/runtime_contract.h"
#include "tests/index/cuda/tested_index_device.h"

namespace c3po {
namespace cuda {
namespace {

using host_cuda::TestedStream;

const IndexKernels& Kernels() { return host_cuda::TestedKernels<IndexKernels>("c3po_index_kernels"); }

}  // namespace

Error LaunchScan(const ScanArgs& args, Stream) { return Kernels().scan(args, TestedStream()); }
Error LaunchHalfScan(const HalfScanArgs& args, Stream) { return Kernels().half_scan(args, TestedStream()); }
Error LaunchBeamSearch(const BeamArgs& args, Stream) { return Kernels().beam_search(args, TestedStream()); }
Error LaunchScatter(const ScatterArgs& args, Stream) { return Kernels().scatter(args, TestedStream()); }
Error LaunchNarrow(const NarrowArgs& args, Stream) { return Kernels().narrow(args, TestedStream()); }

}  // namespace cuda

std::shared_ptr<IndexDevice> OpenTestedIndexDevice(int64_t budget_bytes) {
  std::string why;
  cuda::Runtime* const runtime = OpenTestedRuntime(&why);
  if (runtime == nullptr) throw std::runtime_error(why);
  auto device = IndexDevice::Open(runtime, &cuda::Kernels(), budget_bytes);
  if (!device.ok()) throw std::runtime_error(std::string(device.status().message()));
  return *std::move(device);
}

}  // namespace c3po
