#ifndef C3PO_SERVER_TYPES_DEVICE_NAME_H_
#define C3PO_SERVER_TYPES_DEVICE_NAME_H_

#include "absl/strings/string_view.h"

namespace c3po {

// The devices that there are, as flags, configuration files and messages name them. The flag's check and
// aten::OpenDevice (server/compute/aten/torch_device.h) refuse others.
inline constexpr absl::string_view kCpuDevice = "cpu";
inline constexpr absl::string_view kCudaDevice = "cuda";
inline constexpr absl::string_view kDeviceNames[] = {kCpuDevice, kCudaDevice};

}  // namespace c3po

#endif  // C3PO_SERVER_TYPES_DEVICE_NAME_H_
