// In the place of the driver's libcuda.so.1: as much of it as the CUDA runtime asks before it gives up. It serves the version
// that STAND_IN_DRIVER_VERSION says (1000 * major + 10 * minor), and cuInit returns STAND_IN_DRIVER_ERROR.

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

constexpr int kNotFound = 500, kNotSupported = 801;

int OfEnvironment(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? 0 : std::atoi(value);
}

int NotSupported() { return kNotSupported; }

}  // namespace

extern "C" {

int cuDriverGetVersion(int* version) {
  *version = OfEnvironment("STAND_IN_DRIVER_VERSION");
  return 0;
}

int cuInit(unsigned) { return OfEnvironment("STAND_IN_DRIVER_ERROR"); }

int cuGetExportTable(const void** table, const void*) {
  *table = nullptr;
  return kNotFound;
}

int cuGetProcAddress_v2(const char* name, void** function, int, uint64_t, int* found) {
  const struct {
    const char* name;
    void* function;
  } known[] = {{"cuDriverGetVersion", reinterpret_cast<void*>(cuDriverGetVersion)},
               {"cuInit", reinterpret_cast<void*>(cuInit)},
               {"cuGetExportTable", reinterpret_cast<void*>(cuGetExportTable)},
               {"cuGetProcAddress", reinterpret_cast<void*>(cuGetProcAddress_v2)}};
  *function = reinterpret_cast<void*>(NotSupported);
  for (const auto& one : known) {
    if (std::strcmp(name, one.name) == 0) *function = one.function;
  }
  if (found != nullptr) *found = 0;
  return 0;
}
}
