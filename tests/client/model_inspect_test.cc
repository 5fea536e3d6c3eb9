// `c3po model inspect` hands over to c3pod: which program it finds, what it passes on, how it exits.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "tests/client/child_process.h"

namespace c3po {
namespace {

using ::testing::HasSubstr;

class ModelInspect : public ::testing::Test {
 protected:
  // A program that tells its arguments and exits with 1, as c3pod does where a folder would not load.
  std::string StandIn(const std::string& folder) {
    std::filesystem::create_directories(folder);
    const std::string path = folder + "/c3pod";
    std::ofstream(path) << "#!/bin/sh\nprintf '%s\\n' \"$@\"\nexit 1\n";
    std::filesystem::permissions(path, std::filesystem::perms::owner_all);
    return path;
  }
  const std::string folder_ = ::testing::TempDir() + "c3po_model_inspect";
};

TEST_F(ModelInspect, PassesFolderAndFormatToTheNamedProgramAndItsExitCodeBack) {
  const std::string program = StandIn(folder_);
  const ChildResult text = ChildProcess({C3PO_CLI_BINARY, "model", "inspect", "a b", "--c3pod", program}).Wait();
  EXPECT_EQ(text.exit_code, 1);
  EXPECT_EQ(text.out, "inspect\na b\n");
  const ChildResult json =
      ChildProcess({C3PO_CLI_BINARY, "model", "inspect", "--json", "--c3pod", program, "--", "-x"}).Wait();
  EXPECT_EQ(json.out, "inspect\n./-x\n--json\n");
  const ChildResult named =
      ChildProcess({C3PO_CLI_BINARY, "model", "inspect", "org/name", "--revision", "v1", "--c3pod", program}).Wait();
  EXPECT_EQ(named.out, "inspect\norg/name\n--revision\nv1\n");
}

TEST_F(ModelInspect, FindsTheProgramBesideItself) {
  StandIn(folder_ + "/beside");
  const std::string copy = folder_ + "/beside/c3po";
  std::filesystem::remove(copy);
  std::filesystem::copy_file(C3PO_CLI_BINARY, copy);
  EXPECT_EQ(ChildProcess({copy, "model", "inspect", "m"}).Wait().out, "inspect\nm\n");
}

TEST_F(ModelInspect, SaysWhatToDoWhereThereIsNoSuchProgram) {
  const ChildResult result =
      ChildProcess({C3PO_CLI_BINARY, "model", "inspect", "m", "--c3pod", folder_ + "/none"}).Wait();
  EXPECT_EQ(result.exit_code, 5);
  EXPECT_THAT(result.err, HasSubstr("name it with --c3pod"));
  EXPECT_EQ(ChildProcess({C3PO_CLI_BINARY, "model", "inspect"}).Wait().exit_code, 2);
}

}  // namespace
}  // namespace c3po
