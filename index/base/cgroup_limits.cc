#include "index/base/cgroup_limits.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace c3po {
namespace {

constexpr int64_t kUnlimitedBytes = int64_t{1} << 60;  // Version 1 writes a number near 2^63 for "no limit".

// The first line's words; none: the file cannot be read.
std::vector<std::string> WordsOf(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  if (!file || !std::getline(file, line)) return {};
  return absl::StrSplit(line, ' ', absl::SkipEmpty());
}

std::optional<int64_t> NumberIn(const std::string& path) {
  const std::vector<std::string> words = WordsOf(path);
  int64_t number = 0;
  if (words.size() != 1 || !absl::SimpleAtoi(words[0], &number)) return std::nullopt;
  return number;
}

template <typename Value>
void Lower(std::optional<Value>& limit, Value to) {
  if (!limit || to < *limit) limit = to;
}

void LowerProcessors(double quota, double period, CgroupLimits& limits) {
  if (quota > 0 && period > 0) Lower(limits.processors, quota / period);
}

void LowerMemory(int64_t bytes, CgroupLimits& limits) {
  if (bytes > 0 && bytes < kUnlimitedBytes) Lower(limits.memory_bytes, bytes);
}

void ReadVersion2(const std::string& folder, CgroupLimits& limits) {
  const std::vector<std::string> words = WordsOf(folder + "/cpu.max");  // "150000 100000", or "max 100000"
  double quota = 0, period = 0;
  if (words.size() == 2 && absl::SimpleAtod(words[0], &quota) && absl::SimpleAtod(words[1], &period)) {
    LowerProcessors(quota, period, limits);
  }
  if (const auto bytes = NumberIn(folder + "/memory.max")) LowerMemory(*bytes, limits);
}

void ReadVersion1(const std::string& folder, CgroupLimits& limits) {
  const auto quota = NumberIn(folder + "/cpu.cfs_quota_us");  // -1: none
  const auto period = NumberIn(folder + "/cpu.cfs_period_us");
  if (quota && period) LowerProcessors(static_cast<double>(*quota), static_cast<double>(*period), limits);
  if (const auto bytes = NumberIn(folder + "/memory.limit_in_bytes")) LowerMemory(*bytes, limits);
}

// Calls read(folder) for the group and every one above it, up to `mount` itself. A container whose /proc names a group
// that it does not see finds its own at the top.
template <typename Read>
void ForEachGroup(const std::string& mount, std::string group, Read read) {
  while (group.size() > 1) {
    read(mount + group);
    group.resize(group.rfind('/'));
  }
  read(mount);
}

}  // namespace

CgroupLimits ReadCgroupLimits(const std::string& root) {
  CgroupLimits limits;
  std::ifstream groups(root + "/proc/self/cgroup");
  const std::string mount = root + "/sys/fs/cgroup";
  for (std::string line; std::getline(groups, line);) {  // "0::/GROUP", or "4:cpu,cpuacct:/GROUP" of version 1
    const std::vector<std::string> fields = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (fields.size() != 3 || !absl::StartsWith(fields[2], "/")) continue;
    if (fields[1].empty()) {
      ForEachGroup(mount, fields[2], [&](const std::string& folder) { ReadVersion2(folder, limits); });
      continue;
    }
    for (const absl::string_view controller : absl::StrSplit(fields[1], ',')) {
      if (controller != "cpu" && controller != "memory") continue;
      ForEachGroup(absl::StrCat(mount, "/", controller), fields[2],
                   [&](const std::string& folder) { ReadVersion1(folder, limits); });
    }
  }
  return limits;
}

int UsableProcessors(const CgroupLimits& limits) {
  cpu_set_t set;
  CPU_ZERO(&set);
  int processors = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 0;
  if (processors < 1) processors = static_cast<int>(std::thread::hardware_concurrency());
  if (limits.processors) processors = std::min(processors, static_cast<int>(std::floor(*limits.processors)));
  return std::max(1, processors);
}

}  // namespace c3po
