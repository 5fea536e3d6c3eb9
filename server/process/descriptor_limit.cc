#include "server/process/descriptor_limit.h"

#include <sys/resource.h>

#include <algorithm>

namespace c3po {
namespace {

constexpr rlim_t kWanted = 65536;

}  // namespace

int64_t DescriptorLimit() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
  return static_cast<int64_t>(std::min<rlim_t>(limit.rlim_cur, INT64_MAX));
}

int64_t RaiseDescriptorLimit() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
  const rlim_t wanted = std::min(kWanted, limit.rlim_max);
  if (limit.rlim_cur < wanted) {
    const rlimit raised = {wanted, limit.rlim_max};
    setrlimit(RLIMIT_NOFILE, &raised);
  }
  return DescriptorLimit();
}

}  // namespace c3po
