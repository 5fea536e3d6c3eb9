#include "index/base/cuda/device.h"
#include "tests/host_cuda/fault_kernels.h"

namespace c3po::host_cuda {

using namespace device;  // NOLINT: the language of kernels

namespace {

constexpr int kSharedBytes = 64;

C3PO_KERNEL void Shape(ShapeArgs) {}

C3PO_KERNEL void Fault(FaultArgs args) {
  auto* const shared = static_cast<unsigned char*>(SharedMemory());
  const bool first = Thread() == 0;
  switch (args.what) {
    case FaultArgs::kNone:
      break;
    case FaultArgs::kSharedByteTooMuch:
      if (first) shared[kSharedBytes + args.bytes] = 1;
      break;
    case FaultArgs::kSharedReadTooMuch:
      if (first) args.memory[0] = shared[kSharedBytes + args.bytes];
      break;
    case FaultArgs::kMemoryByteTooMuch:
      if (first) args.memory[args.bytes] = 1;
      break;
    case FaultArgs::kCopyAtOddAddress:
      if (first) CopyAsync16(shared + 8, args.memory);
      break;
    case FaultArgs::kCopyFromOddAddress:
      if (first) CopyAsync16(shared, args.memory + 4);
      break;
    case FaultArgs::kCopyBesideShared:
      if (first) CopyAsync16(args.memory, args.memory);
      break;
    case FaultArgs::kMatrixBesideShared: {
      uint32_t words[4];
      LoadMatrices4(words, shared + kSharedBytes - 8);
      break;
    }
    case FaultArgs::kShuffleByTooMuch:
      ShuffleDown(1, 32);
      break;
    case FaultArgs::kLoadAtOddAddress:
      if (first) LoadOnce(reinterpret_cast<const Words4*>(args.memory + 4));
      break;
    case FaultArgs::kLaunch:
      if (first) static_cast<void>(LaunchShape(1, 1, 1, 32, 0, nullptr));
      break;
    case FaultArgs::kWaitForAtomic: {
      auto* const flag = reinterpret_cast<uint32_t*>(args.memory);
      if (Thread() == 33) AtomicExchange(flag, 1u);
      while (AtomicOr(flag, 0u) == 0) {
      }
      break;
    }
  }
}

C3PO_KERNEL void Early(EarlyArgs args) {
  if (args.waits || Thread() != 7) WaitForPreviousKernel();
  LetNextKernelStart();
}

C3PO_KERNEL void Barriers(BarrierArgs args) {
  for (int i = 0; i < args.barriers; ++i) SyncBlock();
}

C3PO_KERNEL void TakeNumbers(OrderArgs args) { args.out[AtomicAdd(args.next, 1u)] = static_cast<unsigned>(Thread()); }

}  // namespace

Error LaunchFault(const FaultArgs& args, Stream stream) {
  return Launch(Fault, Grid{1}, 64, kSharedBytes, stream, args);
}
Error LaunchEarlyKernel(const EarlyArgs& args, Stream stream) {
  return LaunchEarly(Early, Grid{1}, 32, 0, stream, args);
}
Error LaunchShape(int x, int y, int z, int threads, int shared_bytes, Stream stream) {
  return Launch(Shape, Grid{x, y, z}, threads, shared_bytes, stream, ShapeArgs{});
}
Error LaunchBarriers(const BarrierArgs& args, int threads, Stream stream) {
  return Launch(Barriers, Grid{1}, threads, 0, stream, args);
}
Error LaunchOrder(const OrderArgs& args, Stream stream) { return Launch(TakeNumbers, Grid{1}, 64, 0, stream, args); }
int ThreadOutsideOfAKernel() { return Thread(); }

}  // namespace c3po::host_cuda
