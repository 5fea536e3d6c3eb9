#include "index/base/host_port.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace c3po {
namespace {

TEST(HostPort, AnAddressNeedsItsPort) {
  for (const std::string address : {"127.0.0.1:0", "localhost:65535", "[::1]:50051", "0.0.0.0:1", "unix:/tmp/socket",
                                    "unix:socket", "unix-abstract:name", "dns:///host:1", "ipv6:[::1]:5"}) {
    EXPECT_TRUE(CheckHostPort(address).ok()) << address << ": " << CheckHostPort(address);
  }
  for (const std::string address :
       {"", "127.0.0.1", "localhost", "127.0.0.1:", "127.0.0.1:https", "127.0.0.1:65536", "127.0.0.1:-1", "[::1]",
        "::1", "::1:50051", "unix:", "unix-abstract:", "dns:///host", "127.0.0.1:18446744073709551617"}) {
    EXPECT_EQ(CheckHostPort(address).code(), absl::StatusCode::kInvalidArgument) << address;
  }
  EXPECT_THAT(std::string(CheckHostPort("::1:50051").message()), testing::HasSubstr("[::1]:50051"));
}

}  // namespace
}  // namespace c3po
