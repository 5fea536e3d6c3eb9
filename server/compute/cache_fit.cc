#include "server/compute/cache_fit.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace c3po {
namespace {

std::string Gigabytes(int64_t bytes) { return absl::StrFormat("%.2f GB", static_cast<double>(bytes) / 1e9); }

absl::Status DoesNotFit(const CacheRequest& request, int64_t budget, int64_t positions) {
  std::string sum;
  int64_t all = positions * request.position_bytes;
  for (const DevicePart& part : request.parts) {
    absl::StrAppend(&sum, part.name, " ", Gigabytes(part.bytes), " + ");
    all += part.bytes;
  }
  return absl::FailedPreconditionError(
      absl::StrCat("the device's memory is too small: ", sum, "keys and values of ", positions, " positions ",
                   Gigabytes(positions * request.position_bytes), " = ", Gigabytes(all), ", of ", Gigabytes(budget),
                   " (", request.fraction, " of ", Gigabytes(request.device_bytes), ", gpu-memory-fraction)"));
}

}  // namespace

absl::StatusOr<int64_t> FitCache(const CacheRequest& request) {
  const auto budget = static_cast<int64_t>(static_cast<double>(request.device_bytes) * request.fraction);
  int64_t left = budget;
  for (const DevicePart& part : request.parts) left -= part.bytes;
  const int64_t block_bytes = request.position_bytes * request.block_positions;
  const int64_t fit = std::max<int64_t>(left, 0) / block_bytes * request.block_positions;
  const int64_t needed = request.positions > 0 ? request.positions : request.positions_least;
  if (fit < needed) return DoesNotFit(request, budget, needed);
  if (request.positions > 0) return request.positions;
  return std::min(fit, request.positions_max / request.block_positions * request.block_positions);
}

absl::StatusOr<int64_t> CachePositions(const Backend& backend, const CacheSettings& settings) {
  constexpr int64_t kOnHost = 32768, kLeast = 4096, kMost = int64_t{1} << 30;
  const std::optional<Backend::OwnMemory> memory = backend.own_memory();
  if (!memory) return settings.positions > 0 ? settings.positions : kOnHost;
  const int64_t weights = backend.info().weight_bytes;
  CacheRequest request;
  request.device_bytes = memory->bytes;
  request.fraction = settings.fraction;
  request.parts = {{"weights", weights},
                   {"what else is there now", std::max<int64_t>(0, memory->bytes - memory->free_bytes - weights)},
                   {"reference states", settings.reference_bytes},
                   {"work", settings.work_bytes}};
  request.position_bytes = backend.KvCacheBytes({1, 1});
  request.block_positions = settings.block_positions;
  request.positions = settings.positions;
  request.positions_least = std::min(kLeast, settings.context_window);
  request.positions_max = kMost;
  return FitCache(request);
}

}  // namespace c3po
