#include "server/compute/cache_fit.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

std::string Gigabytes(int64_t bytes) { return absl::StrFormat("%.2f GB", static_cast<double>(bytes) / 1e9); }

int64_t BytesOf(const std::vector<DevicePart>& parts) {
  int64_t all = 0;
  for (const DevicePart& part : parts) all += part.bytes;
  return all;
}

absl::Status DoesNotFit(const std::vector<DevicePart>& parts, int64_t limit, double fraction, int64_t device_bytes) {
  std::string sum;
  for (const DevicePart& part : parts) {
    absl::StrAppend(&sum, sum.empty() ? "" : " + ", part.name, " ", Gigabytes(part.bytes));
  }
  return absl::FailedPreconditionError(
      absl::StrCat("the device's memory is too small: ", sum, " = ", Gigabytes(BytesOf(parts)), ", of ",
                   Gigabytes(limit), " (", fraction, " of ", Gigabytes(device_bytes), ", gpu-memory-fraction)"));
}

}  // namespace

absl::StatusOr<int64_t> FitCache(const CacheRequest& request) {
  const auto limit = static_cast<int64_t>(static_cast<double>(request.device_bytes) * request.fraction);
  const int64_t left = limit - BytesOf(request.parts);
  const int64_t block_bytes = request.position_bytes * request.block_positions;
  const int64_t fit = std::max<int64_t>(left, 0) / block_bytes * request.block_positions;
  const int64_t needed = request.positions > 0 ? request.positions : request.positions_least;
  if (fit < needed) {
    std::vector<DevicePart> parts = request.parts;
    parts.push_back({absl::StrCat("keys and values of ", needed, " positions"), needed * request.position_bytes});
    return DoesNotFit(parts, limit, request.fraction, request.device_bytes);
  }
  if (request.positions > 0) return request.positions;
  return std::min(fit, request.positions_max / request.block_positions * request.block_positions);
}

std::vector<DevicePart> DevicePlan::Parts() const {
  return {{"weights", weights},
          {"encoder", encoder},
          {"index of references (index-memory-mb)", index},
          {"reference states (neighbor-cache-mb)", reference_states},
          {"work space (work-memory-mb)", work},
          {"what else is there now", other}};
}

int64_t DevicePlan::all() const { return BytesOf(Parts()) + kv_cache; }

absl::StatusOr<CachePlan> PlanCache(const Backend& backend, const CacheSettings& settings) {
  constexpr int64_t kOnHost = 32768, kLeast = 4096, kMost = int64_t{1} << 30;
  const std::optional<Backend::OwnMemory> memory = backend.own_memory();
  CachePlan plan;
  if (!memory) {
    plan.positions = settings.positions > 0 ? settings.positions : kOnHost;
    return plan;
  }
  DevicePlan device;
  device.device_bytes = memory->bytes;
  device.fraction = settings.fraction;
  device.weights = backend.info().weight_bytes;
  device.encoder = settings.encoder_bytes;
  device.index = settings.index_bytes_max;
  device.reference_states = settings.reference_bytes;
  device.work = settings.work_bytes;
  const int64_t known = device.weights + device.encoder + settings.index_bytes;
  device.other = std::max<int64_t>(0, memory->bytes - memory->free_bytes - known);
  CacheRequest request;
  request.device_bytes = device.device_bytes;
  request.fraction = device.fraction;
  request.parts = device.Parts();
  request.position_bytes = backend.KvCacheBytes({1, 1});
  request.block_positions = settings.block_positions;
  request.positions = settings.positions;
  request.positions_least = std::min(kLeast, settings.context_window);
  request.positions_max = kMost;
  C3PO_ASSIGN_OR_RETURN(plan.positions, FitCache(request));
  device.kv_cache = plan.positions * request.position_bytes;
  plan.device = device;
  return plan;
}

absl::StatusOr<DevicePlan> PlanIndexAlone(const Backend::OwnMemory& memory, double fraction, int64_t index_bytes_max,
                                          int64_t index_bytes) {
  DevicePlan device;
  device.device_bytes = memory.bytes;
  device.fraction = fraction;
  device.index = index_bytes_max;
  device.other = std::max<int64_t>(0, memory.bytes - memory.free_bytes - index_bytes);
  if (device.all() <= device.limit_bytes()) return device;
  std::vector<DevicePart> parts;
  for (DevicePart& part : device.Parts()) {
    if (part.bytes > 0) parts.push_back(std::move(part));
  }
  return DoesNotFit(parts, device.limit_bytes(), fraction, memory.bytes);
}

}  // namespace c3po
