#ifndef C3PO_SERVER_COMPUTE_CACHE_FIT_H_
#define C3PO_SERVER_COMPUTE_CACHE_FIT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/compute/backend.h"

namespace c3po {

// What takes memory of a device beside the cache of keys and values, or will.
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

// What decides about the cache of a model that is loaded.
struct CacheSettings {
  double fraction = 0.9;  // of a device's own memory
  int64_t positions = 0;  // asked for; 0: as many as fit on a device, 32,768 in the host's memory
  int64_t block_positions = 1;
  int64_t context_window = 0;   // of the model
  int64_t reference_bytes = 0;  // that references' states may take
  int64_t work_bytes = 0;       // that optimizations may
};
// Errors are those of FitCache. Whatever the device holds now is there to stay.
absl::StatusOr<int64_t> CachePositions(const Backend& backend, const CacheSettings& settings);

}  // namespace c3po

#endif  // C3PO_SERVER_COMPUTE_CACHE_FIT_H_
