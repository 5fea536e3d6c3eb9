#include "index/base/cuda/library.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <thread>

namespace c3po::cuda {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

std::string Message(const absl::Status& status) {
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), StartsWith("device cuda: "));
  return std::string(status.message());
}

TEST(CudaLibrary, TheFirstFileThatIsThereIsOpened) {
  const auto library = Library::Open({"/nowhere/libc3po_cuda.so", C3PO_STAND_IN, C3PO_OTHER_STAND_IN});
  ASSERT_TRUE(library.ok()) << library.status();
  const auto table = library->Kernels<int>("c3po_index_kernels");
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_EQ(**table, 17);
}

TEST(CudaLibrary, WhatTheRuntimeLacksIsSaidInOneSentence) {
  const auto library = Library::Open({C3PO_STAND_IN});
  ASSERT_TRUE(library.ok()) << library.status();
  EXPECT_EQ(Message(library->OpenRuntime().status()), "device cuda: nothing but a stand-in");
}

TEST(CudaLibrary, AMissingFileIsSaidWithWhereItWasLookedFor) {
  EXPECT_THAT(Message(Library::Open({"/nowhere/bin/libc3po_cuda.so", "/nowhere/lib/libc3po_cuda.so"}).status()),
              AllOf(HasSubstr("without CUDA code"),
                    HasSubstr("/nowhere/bin/libc3po_cuda.so and /nowhere/lib/libc3po_cuda.so are not there")));
}

TEST(CudaLibrary, AFileThatIsNoLibraryIsNamed) {
  const std::filesystem::path path = std::filesystem::path(testing::TempDir()) / "no_library.so";
  std::ofstream(path) << "no library";
  EXPECT_THAT(Message(Library::Open({path}).status()), AllOf(HasSubstr("does not load: "), HasSubstr(path.string())));
}

TEST(CudaLibrary, AnotherVersionIsRefusedByName) {
  const auto library = Library::Open({C3PO_OTHER_STAND_IN});
  ASSERT_TRUE(library.ok()) << library.status();
  const std::string refused = "device cuda: " C3PO_OTHER_STAND_IN " is of another version than this program";
  EXPECT_EQ(Message(library->OpenRuntime().status()), refused);
  EXPECT_EQ(Message(library->Kernels<int>("c3po_index_kernels").status()), refused);
  EXPECT_EQ(Message(library->Kernels<int>("c3po_model_kernels").status()), refused + ": it has no c3po_model_kernels");
}

// All threads get the one runtime, or the one reason why there is none.
TEST(CudaLibrary, ThisProgramsOwnIsOpenedOnceByWhateverThread) {
  absl::StatusOr<Runtime*> runtimes[4];
  std::vector<std::thread> threads;
  for (auto& runtime : runtimes) threads.emplace_back([&runtime] { runtime = OpenRuntime(); });
  for (std::thread& thread : threads) thread.join();
  for (const auto& runtime : runtimes) {
    EXPECT_EQ(runtime.status(), runtimes[0].status());
    if (runtime.ok()) {
      EXPECT_EQ(*runtime, *runtimes[0]);
    } else {
      Message(runtime.status());
    }
  }
}

}  // namespace
}  // namespace c3po::cuda
