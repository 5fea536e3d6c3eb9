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

TEST(DeviceFailure, OfAnotherDeviceIsNotThatOfTheOneComputedOn) {
  DeviceRecord other;
  EXPECT_FALSE(other.failed());
  other.Note("searching: it is broken");
  EXPECT_TRUE(other.failed());
  EXPECT_EQ(other.status(), absl::UnavailableError("the device failed: searching: it is broken"));
  EXPECT_TRUE(DeviceFailure().ok());
  EXPECT_FALSE(ComputingDevice().failed());
  NoteDeviceFailure("computing: it is broken");
  EXPECT_EQ(ComputingDevice().status(), DeviceFailure());
  EXPECT_TRUE(ComputingDevice().failed());
  ForgetDeviceFailure();
  EXPECT_FALSE(ComputingDevice().failed());
  EXPECT_TRUE(other.failed());
}

}  // namespace
}  // namespace c3po
