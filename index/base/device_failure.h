#ifndef C3PO_INDEX_BASE_DEVICE_FAILURE_H_
#define C3PO_INDEX_BASE_DEVICE_FAILURE_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace c3po {

// Whether the device that the process computes on, beside its processor, has failed. Nothing that it gives afterwards
// is right, and no call of it mends that: the process serves no more, and ends. All of it is thread-safe.

// Unavailable "the device failed: WHAT" of the first NoteDeviceFailure; OK until then.
absl::Status DeviceFailure();

// Of an error that no program of c3po's is to blame for: of the device, its driver, or a kernel on it.
void NoteDeviceFailure(absl::string_view what);

// DeviceFailure, if there is one: it explains whatever else went wrong. Else `other`.
absl::Status FailureOfDeviceOr(absl::Status other);

// As if it had not failed, for tests that go on with another one.
void ForgetDeviceFailure();

}  // namespace c3po

#endif  // C3PO_INDEX_BASE_DEVICE_FAILURE_H_
