#include "server/compute/device.h"

#include <c10/core/InferenceMode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <new>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/compute/aten/torch_device.h"
#include "server/types/device_name.h"

namespace c3po {
namespace {

TEST(Device, ANameThatNoDeviceHasIsRefusedWithThoseThatThereAre) {
  for (const char* name : {"", "tpu", "CPU", "cpu ", "cuda:0", "cuda:63", "mkldnn"}) {
    for (const absl::Status& status : {aten::OpenDevice(name).status(), OpenQueue(name).status()}) {
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name;
      EXPECT_EQ(status.message(), "device \"" + std::string(name) + "\" is not one of cpu, cuda");
    }
  }
}

TEST(Device, EachNameOfTheListOpensOrSaysWhatIsMissing) {
  for (const absl::string_view name : kDeviceNames) {
    const auto device = aten::OpenDevice(std::string(name));
    const auto queue = OpenQueue(std::string(name));
    EXPECT_EQ(queue.status(), device.status());
    if (device.ok()) continue;
    EXPECT_NE(name, kCpuDevice);
    EXPECT_EQ(device.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(device.status().message()), testing::StartsWith("device " + std::string(name) + ": "));
  }
}

constexpr ElementType kFloat32 = ElementType::kFloat32, kBfloat16 = ElementType::kBfloat16;

TEST(ChooseKvType, OfCudaIsThatOfItsWeightsAndAnotherIsRefusedByName) {
  for (const auto& [name, weights] : {std::pair("float32", kFloat32), {"bfloat16", kBfloat16}}) {
    WeightPlacement own{.device = "cuda", .dtype = weights}, other = own;
    other.dtype = weights == kFloat32 ? kBfloat16 : kFloat32;
    EXPECT_EQ(ChooseKvType("auto", own).value(), weights);
    EXPECT_EQ(ChooseKvType(name, own).value(), weights);
    const absl::Status refused = ChooseKvType(name, other).status();
    EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(refused.message()),
                testing::HasSubstr(absl::StrCat("kv-cache-dtype ", name, ": device cuda")));
    other.device = "cpu";
    EXPECT_TRUE(ChooseKvType(name, other).ok());
  }
}

TEST(ChooseKvType, OfQuantizedWeightsIsBfloat16WhateverTheOthersAre) {
  for (const WeightFormat format : {WeightFormat::kInt8, WeightFormat::kInt4}) {
    const WeightPlacement quantized{.dtype = kFloat32, .format = format};
    EXPECT_EQ(ChooseKvType("auto", quantized).value(), kBfloat16);
    EXPECT_EQ(ChooseKvType("float32", quantized).value(), kFloat32);
  }
}

// A GPU's kernels round rows, and keep keys and values, as the type beside the levels says.
TEST(WeightPlacement, OfQuantizedWeightsOnCudaComputesInTheTypeOfTheOthers) {
  for (const auto& [name, type] : {std::pair("float32", kFloat32), {"bfloat16", kBfloat16}}) {
    for (const WeightFormat format : {WeightFormat::kInt8, WeightFormat::kInt4}) {
      const WeightPlacement placement{.device = "cuda", .dtype = type, .format = format};
      EXPECT_EQ(ChooseKvType("auto", placement).value(), type);
      EXPECT_FALSE(ChooseKvType(type == kFloat32 ? "bfloat16" : "float32", placement).ok());
      EXPECT_EQ(placement.arithmetic(), name);
      EXPECT_EQ(placement.weights(), format == WeightFormat::kInt8 ? "int8" : "int4");
    }
  }
}

TEST(Device, AQueueGivesTheThreadItsModeBackWhenItsWorkThrows) {
  const auto queue = OpenQueue(std::string(kCpuDevice));
  ASSERT_TRUE(queue.ok()) << queue.status();
  for (int i = 0; i < 3; ++i) {  // Also its place among the guests, of which there is one at a time.
    EXPECT_THROW((*queue)->Run([] {
      EXPECT_TRUE(c10::InferenceMode::is_enabled());
      throw std::bad_alloc();
    }),
                 std::bad_alloc);
    EXPECT_FALSE(c10::InferenceMode::is_enabled());
  }
}

}  // namespace
}  // namespace c3po
