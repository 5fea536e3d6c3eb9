#ifndef C3PO_SERVER_COMPUTE_CACHE_FIT_H_
#define C3PO_SERVER_COMPUTE_CACHE_FIT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/compute/backend.h"

namespace c3po {

// What takes memory of a device, or will.
struct DevicePart {
  std::string name;  // for people
  int64_t bytes = 0;
};

// How many positions of keys and values a device is to hold.
struct CacheRequest {
  int64_t device_bytes = 0;  // that the device has
  double fraction = 1;       // of these the server takes, (0, 1]
  std::vector<DevicePart> parts;
  int64_t position_bytes = 1;   // of keys and values, all layers
  int64_t block_positions = 1;  // The cache is cut into blocks of so many.
  int64_t positions = 0;        // asked for; 0: as many as fit
  int64_t positions_least = 1;  // Below, the server would serve nothing worth it.
  int64_t positions_max = 0;    // Never more.
};

// As many positions as asked for, or, of whole blocks, as fit beside the parts; at most positions_max.
// FailedPrecondition: those asked for, or the least, do not fit; the message is the sum, each part by its name.
absl::StatusOr<int64_t> FitCache(const CacheRequest& request);

// What a device's memory is planned for at the start, in bytes. A part that grows is planned with its limit, so that
// none takes what another one was promised.
struct DevicePlan {
  int64_t device_bytes = 0;  // that the device has
  double fraction = 1;       // of these the server plans with
  int64_t weights = 0;
  int64_t encoder = 0;           // the sentence encoder's weights
  int64_t index = 0;             // of references: its budget, whatever of it is taken yet
  int64_t reference_states = 0;  // at most
  int64_t work = 0;              // of optimizations, at most
  int64_t other = 0;             // what else is there now: the driver's own, and other programs'
  int64_t kv_cache = 0;

  int64_t limit_bytes() const { return static_cast<int64_t>(static_cast<double>(device_bytes) * fraction); }
  // All but keys and values, by name.
  std::vector<DevicePart> Parts() const;
  int64_t all() const;
};

// What decides about the cache of a model that is loaded, and about the memory of its device.
struct CacheSettings {
  double fraction = 0.9;  // of a device's own memory
  int64_t positions = 0;  // asked for; 0: as many as fit on a device, 32,768 in the host's memory
  int64_t block_positions = 1;
  int64_t context_window = 0;   // of the model
  int64_t reference_bytes = 0;  // that references' states may take
  int64_t work_bytes = 0;       // that optimizations may
  int64_t encoder_bytes = 0;    // of the sentence encoder, on the model's device
  int64_t index_bytes_max = 0;  // that the references' index may take on the model's device; 0: it is not there
  int64_t index_bytes = 0;      // of these, taken now
};
struct CachePlan {
  int64_t positions = 0;             // of keys and values
  std::optional<DevicePlan> device;  // where the model has a device with memory of its own
};
// Errors are those of FitCache. Whatever the device holds now is there to stay.
absl::StatusOr<CachePlan> PlanCache(const Backend& backend, const CacheSettings& settings);

// The plan of a device that holds references alone, the model being elsewhere. FailedPrecondition: they do not fit
// beside what is there now; the message is the sum.
absl::StatusOr<DevicePlan> PlanIndexAlone(const Backend::OwnMemory& memory, double fraction, int64_t index_bytes_max,
                                          int64_t index_bytes);

}  // namespace c3po

#endif  // C3PO_SERVER_COMPUTE_CACHE_FIT_H_
