#include "index/base/device_failure.h"

#include "absl/strings/str_cat.h"

namespace c3po {

absl::Status DeviceRecord::status() const {
  const absl::MutexLock lock(&mu_);
  return status_;
}

void DeviceRecord::Note(absl::string_view what) {
  const absl::MutexLock lock(&mu_);
  if (status_.ok()) status_ = absl::UnavailableError(absl::StrCat("the device failed: ", what));
  failed_.store(true);
}

void DeviceRecord::Forget() {
  const absl::MutexLock lock(&mu_);
  status_ = absl::OkStatus();
  failed_.store(false);
}

DeviceRecord& ComputingDevice() {
  static auto* const record = new DeviceRecord();
  return *record;
}

absl::Status DeviceFailure() { return ComputingDevice().status(); }

void NoteDeviceFailure(absl::string_view what) { ComputingDevice().Note(what); }

void ForgetDeviceFailure() { ComputingDevice().Forget(); }

absl::Status FailureOfDeviceOr(absl::Status other) {
  absl::Status failure = DeviceFailure();
  return failure.ok() ? other : failure;
}

}  // namespace c3po
