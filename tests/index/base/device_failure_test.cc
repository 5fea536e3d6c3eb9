#include "index/base/device_failure.h"

#include <gtest/gtest.h>

namespace c3po {
namespace {

TEST(DeviceFailure, IsTheFirstOneAndExplainsWhateverFailsAfterwards) {
  EXPECT_TRUE(DeviceFailure().ok());
  EXPECT_EQ(FailureOfDeviceOr(absl::InternalError("something")).message(), "something");
  NoteDeviceFailure("copying: an illegal memory access");
  NoteDeviceFailure("computing: it is broken");
  EXPECT_EQ(DeviceFailure(), absl::UnavailableError("the device failed: copying: an illegal memory access"));
  EXPECT_EQ(FailureOfDeviceOr(absl::InternalError("something")), DeviceFailure());
  ForgetDeviceFailure();
  EXPECT_TRUE(DeviceFailure().ok());
}

}  // namespace
}  // namespace c3po
