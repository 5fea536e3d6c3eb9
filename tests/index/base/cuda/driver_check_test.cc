#include "index/base/cuda/driver_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace c3po::cuda {
namespace {

using testing::HasSubstr;
using testing::IsNull;
using testing::StrEq;

DriverState Working() { return {13000, 13010, nullptr, 1, "NVIDIA H200", 9, 0, true}; }

TEST(DriverCheck, ADeviceThatRunsTheCodeIsRefusedForNothing) { EXPECT_THAT(WhyNoDevice(Working()), IsNull()); }

TEST(DriverCheck, WithoutADriverNothingElseIsSaid) {
  const DriverState state = {13000, 0, "CUDA driver version is insufficient for CUDA runtime version"};
  EXPECT_THAT(WhyNoDevice(state), StrEq("no NVIDIA driver on this machine: libcuda.so.1 does not load"));
}

TEST(DriverCheck, ADriverOfAnEarlierMajorVersionIsTooOld) {
  DriverState state = {13000, 12090, "CUDA driver version is insufficient for CUDA runtime version"};
  EXPECT_THAT(WhyNoDevice(state),
              StrEq("the NVIDIA driver is too old: it serves CUDA 12.9, and 13.0 is needed"));
  state = Working();
  for (const int version : {13000, 13020, 14000}) {  // Of the same major version or later: none is.
    state.driver_version = version;
    EXPECT_THAT(WhyNoDevice(state), IsNull()) << version;
  }
}

TEST(DriverCheck, ADriverWithoutADeviceIsToldFromOneThatFails) {
  DriverState state = {13000, 13000};
  EXPECT_THAT(WhyNoDevice(state), HasSubstr("no NVIDIA GPU that this process may use"));
  state.failure = "system not yet initialized";
  EXPECT_THAT(WhyNoDevice(state), StrEq("the NVIDIA driver does not open a GPU: system not yet initialized"));
  state = Working();
  state.failure = "out of memory";
  EXPECT_THAT(WhyNoDevice(state), StrEq("the NVIDIA driver does not open a GPU: out of memory"));
}

TEST(DriverCheck, ADeviceThatHasNoCodeIsNamedWithItsCapability) {
  DriverState state = Working();
  state.name = "Tesla T4", state.compute_major = 7, state.compute_minor = 5, state.has_code = false;
  EXPECT_THAT(WhyNoDevice(state), StrEq("Tesla T4 has compute capability 7.5, and at least 8.0 is needed"));
  state.name = "NVIDIA GeForce RTX 5090", state.compute_major = 12, state.compute_minor = 0;
  EXPECT_THAT(WhyNoDevice(state),
              StrEq("libc3po_cuda.so has no code for compute capability 12.0 of NVIDIA GeForce RTX 5090"));
}

}  // namespace
}  // namespace c3po::cuda
