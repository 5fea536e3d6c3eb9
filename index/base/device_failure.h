#ifndef C3PO_INDEX_BASE_DEVICE_FAILURE_H_
#define C3PO_INDEX_BASE_DEVICE_FAILURE_H_

#include <atomic>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"

namespace c3po {

// Whether a device has failed. A failure is for good: nothing that the device gives afterwards is right, and no call of
// it mends that. Whatever uses one device shares its record, so that all know at once. Thread-safe.
class DeviceRecord {
 public:
  // Unavailable "the device failed: WHAT" of the first Note; OK until then.
  absl::Status status() const;
  bool failed() const { return failed_.load(); }

  // Of an error that no program of c3po's is to blame for: of the device, its driver, or a kernel on it.
  void Note(absl::string_view what);

  // As if it had not failed, for tests that go on with another one.
  void Forget();

 private:
  std::atomic<bool> failed_ = false;
  mutable absl::Mutex mu_;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
};

// Of the device that the process computes on, beside its processor. Once it fails, the process serves no more, and
// ends. Lives as long as the process.
DeviceRecord& ComputingDevice();

// ComputingDevice().status(), Note and Forget.
absl::Status DeviceFailure();
void NoteDeviceFailure(absl::string_view what);
void ForgetDeviceFailure();

// DeviceFailure, if there is one: it explains whatever else went wrong. Else `other`.
absl::Status FailureOfDeviceOr(absl::Status other);

}  // namespace c3po

#endif  // C3PO_INDEX_BASE_DEVICE_FAILURE_H_
