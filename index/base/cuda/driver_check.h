#ifndef C3PO_INDEX_BASE_CUDA_DRIVER_CHECK_H_
#define C3PO_INDEX_BASE_CUDA_DRIVER_CHECK_H_

#include <cstdio>

#include "index/base/cuda/runtime.h"

namespace c3po::cuda {

// The GPUs that a kernel of libc3po_cuda.so runs on: compute capability 8.x, 9.x and 10.x.
inline constexpr int kComputeMajorMin = 8;

// What the CUDA runtime tells of driver and device when it is opened. Versions are CUDA's: 1000 * major + 10 * minor.
struct DriverState {
  int runtime_version = 0;         // that libc3po_cuda.so is linked with
  int driver_version = 0;          // the latest that the driver serves; 0: there is no driver
  Error failure = nullptr;         // of counting the devices, or of opening the first; null: none
  int devices = 0;                 // that this process sees
  const char* name = "";           // of the first, as are the following
  int compute_major = 0, compute_minor = 0;
  bool has_code = false;           // The library's code loads there.
};

// Why no kernel can run, in a few words without a period; null: one can. The first reason of driver, device and kind
// counts, as each explains those after it. Valid until the thread's next call.
inline Error WhyNoDevice(const DriverState& state) {
  thread_local char text[512];
  const auto say = [](const char* format, const auto&... values) {
    std::snprintf(text, sizeof text, format, values...);
    return Error{text};
  };
  const auto major = [](int version) { return version / 1000; };
  const auto minor = [](int version) { return version % 1000 / 10; };
  if (state.driver_version == 0) return "no NVIDIA driver on this machine: libcuda.so.1 does not load";
  // A driver serves every runtime of its own major version and of earlier ones.
  if (major(state.driver_version) < major(state.runtime_version)) {
    return say("the NVIDIA driver is too old: it serves CUDA %d.%d, and %d.%d is needed", major(state.driver_version),
               minor(state.driver_version), major(state.runtime_version), minor(state.runtime_version));
  }
  if (state.devices == 0 && state.failure == nullptr) {
    return "no NVIDIA GPU that this process may use (CUDA_VISIBLE_DEVICES, or the container's devices)";
  }
  if (state.failure != nullptr) return say("the NVIDIA driver does not open a GPU: %s", state.failure);
  if (state.compute_major < kComputeMajorMin) {
    return say("%s has compute capability %d.%d, and at least %d.0 is needed", state.name, state.compute_major,
               state.compute_minor, kComputeMajorMin);
  }
  if (!state.has_code) {
    return say("libc3po_cuda.so has no code for compute capability %d.%d of %s", state.compute_major,
               state.compute_minor, state.name);
  }
  return nullptr;
}

}  // namespace c3po::cuda

#endif  // C3PO_INDEX_BASE_CUDA_DRIVER_CHECK_H_
