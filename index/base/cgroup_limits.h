#ifndef C3PO_INDEX_BASE_CGROUP_LIMITS_H_
#define C3PO_INDEX_BASE_CGROUP_LIMITS_H_

#include <cstdint>
#include <optional>
#include <string>

namespace c3po {

// What the control groups of this process let it have; nothing where they set no limit, or there are none.
struct CgroupLimits {
  std::optional<double> processors;     // Of time: 1.5 is one and a half processors. > 0.
  std::optional<int64_t> memory_bytes;  // Beyond it the kernel ends the process.
};

// The least of the process's group and of all above it: cpu.max and memory.max of version 2 (kernel document
// admin-guide/cgroup-v2), cpu.cfs_quota_us, cpu.cfs_period_us and memory.limit_in_bytes of version 1. Read from
// ROOT/proc/self/cgroup and below ROOT/sys/fs/cgroup, also where a container sees its own group as the topmost; what
// cannot be read or understood sets no limit. `root` without a slash at its end; empty: the machine's. Thread-safe.
CgroupLimits ReadCgroupLimits(const std::string& root = "");

// How many processors this process may run on at once: those of its affinity, and no more than its quota, rounded down
// (threads that wait for each other are as late as the one that the kernel holds back), at least 1.
int UsableProcessors(const CgroupLimits& limits);

}  // namespace c3po

#endif  // C3PO_INDEX_BASE_CGROUP_LIMITS_H_
