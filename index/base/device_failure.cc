#include "index/base/device_failure.h"

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"

namespace c3po {
namespace {

struct Failure {
  absl::Mutex mu;
  absl::Status status ABSL_GUARDED_BY(mu);
};

Failure& TheFailure() {
  static auto* const failure = new Failure();
  return *failure;
}

}  // namespace

absl::Status DeviceFailure() {
  Failure& failure = TheFailure();
  const absl::MutexLock lock(&failure.mu);
  return failure.status;
}

void NoteDeviceFailure(absl::string_view what) {
  Failure& failure = TheFailure();
  const absl::MutexLock lock(&failure.mu);
  if (failure.status.ok()) failure.status = absl::UnavailableError(absl::StrCat("the device failed: ", what));
}

absl::Status FailureOfDeviceOr(absl::Status other) {
  absl::Status failure = DeviceFailure();
  return failure.ok() ? other : failure;
}

void ForgetDeviceFailure() {
  Failure& failure = TheFailure();
  const absl::MutexLock lock(&failure.mu);
  failure.status = absl::OkStatus();
}

}  // namespace c3po
