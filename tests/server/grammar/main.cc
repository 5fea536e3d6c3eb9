#include <gtest/gtest.h>

#include <string>

#include "server/grammar/form_process.h"

int main(int argc, char** argv) {
  if (argc == 2 && std::string(argv[1]) == c3po::kFormProcessArgument) return c3po::RunFormProcess();
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
