#include "index/base/cgroup_limits.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

namespace c3po {
namespace {

// A machine of files.
class Root {
 public:
  Root() {
    std::string name = testing::TempDir() + "/root_XXXXXX";
    path_ = mkdtemp(name.data());
  }
  ~Root() { std::filesystem::remove_all(path_); }
  Root& With(const std::string& file, const std::string& text) {
    const std::filesystem::path path = path_ + "/" + file;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text << "\n";
    return *this;
  }
  CgroupLimits Read() const { return ReadCgroupLimits(path_); }

 private:
  std::string path_;
};

TEST(CgroupLimits, WithoutGroupsOrLimitsThereIsNone) {
  EXPECT_FALSE(Root().Read().processors);
  Root unlimited;
  unlimited.With("proc/self/cgroup", "0::/").With("sys/fs/cgroup/cpu.max", "max 100000");
  unlimited.With("sys/fs/cgroup/memory.max", "max");
  EXPECT_FALSE(unlimited.Read().processors);
  EXPECT_FALSE(unlimited.Read().memory_bytes);
}

TEST(CgroupLimits, AContainerFindsItsOwnGroupAtTheTop) {
  Root root;
  root.With("proc/self/cgroup", "0::/").With("sys/fs/cgroup/cpu.max", "150000 100000");
  root.With("sys/fs/cgroup/memory.max", "2147483648");
  EXPECT_DOUBLE_EQ(*root.Read().processors, 1.5);
  EXPECT_EQ(*root.Read().memory_bytes, int64_t{2} << 30);
  // Also where its /proc names a group that it does not see.
  root.With("proc/self/cgroup", "0::/kubepods/pod1/container2");
  EXPECT_DOUBLE_EQ(*root.Read().processors, 1.5);
}

TEST(CgroupLimits, TheTightestGroupOfThePathCounts) {
  Root root;
  root.With("proc/self/cgroup", "0::/pods/pod1/container2")
      .With("sys/fs/cgroup/pods/pod1/container2/cpu.max", "max 100000");
  root.With("sys/fs/cgroup/pods/pod1/cpu.max", "400000 100000").With("sys/fs/cgroup/pods/cpu.max", "800000 100000");
  root.With("sys/fs/cgroup/pods/pod1/container2/memory.max", "3000000000");
  root.With("sys/fs/cgroup/pods/memory.max", "1000000000");
  EXPECT_DOUBLE_EQ(*root.Read().processors, 4);
  EXPECT_EQ(*root.Read().memory_bytes, 1000000000);
}

TEST(CgroupLimits, Version1IsReadToo) {
  Root root;
  root.With("proc/self/cgroup", "5:cpu,cpuacct:/docker/a\n4:memory:/docker/a\n1:name=systemd:/docker/a");
  root.With("sys/fs/cgroup/cpu/docker/a/cpu.cfs_quota_us", "250000");
  root.With("sys/fs/cgroup/cpu/docker/a/cpu.cfs_period_us", "100000");
  root.With("sys/fs/cgroup/memory/docker/a/memory.limit_in_bytes", "9223372036854771712");
  EXPECT_DOUBLE_EQ(*root.Read().processors, 2.5);
  EXPECT_FALSE(root.Read().memory_bytes);
  root.With("sys/fs/cgroup/cpu/docker/a/cpu.cfs_quota_us", "-1");
  root.With("sys/fs/cgroup/memory/docker/a/memory.limit_in_bytes", "4000000000");
  EXPECT_FALSE(root.Read().processors);
  EXPECT_EQ(*root.Read().memory_bytes, 4000000000);
}

TEST(CgroupLimits, WhatIsNotUnderstoodSetsNoLimit) {
  Root root;
  root.With("proc/self/cgroup", "nonsense\n0::relative\n0::/").With("sys/fs/cgroup/cpu.max", "many 100000");
  root.With("sys/fs/cgroup/memory.max", "-5");
  EXPECT_FALSE(root.Read().processors);
  EXPECT_FALSE(root.Read().memory_bytes);
  root.With("sys/fs/cgroup/cpu.max", "100000 0");
  EXPECT_FALSE(root.Read().processors);
}

TEST(UsableProcessors, FollowsAffinityAndQuotaRoundedDown) {
  std::thread([] {  // Affinity is a thread's.
    cpu_set_t all;
    CPU_ZERO(&all);
    ASSERT_EQ(sched_getaffinity(0, sizeof(all), &all), 0);
    const int allowed = CPU_COUNT(&all);
    EXPECT_EQ(UsableProcessors({}), allowed);
    EXPECT_EQ(UsableProcessors({1000.0, {}}), allowed);
    EXPECT_EQ(UsableProcessors({1.9, {}}), 1);
    EXPECT_EQ(UsableProcessors({0.2, {}}), 1);
    EXPECT_EQ(UsableProcessors({2.5, {}}), std::min(2, allowed));
    cpu_set_t one;
    CPU_ZERO(&one);
    for (int i = 0; i < CPU_SETSIZE; ++i) {
      if (!CPU_ISSET(i, &all)) continue;
      CPU_SET(i, &one);
      break;
    }
    ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
    EXPECT_EQ(UsableProcessors({}), 1);
  })
      .join();
}

}  // namespace
}  // namespace c3po
