#include "index/base/code_pages.h"

#include <gtest/gtest.h>

#include <array>
#include <fstream>
#include <string>

namespace c3po {
namespace {

constexpr size_t kNumbers = 1 << 17;

constexpr std::array<uint64_t, kNumbers> Numbers() {
  std::array<uint64_t, kNumbers> numbers{};
  for (uint64_t i = 0; i < kNumbers; ++i) numbers[i] = i * 2654435761u + 1;
  return numbers;
}

// 1 MiB of constants in the program's file.
constexpr std::array<uint64_t, kNumbers> kConstants = Numbers();

uint64_t Sum() {
  uint64_t sum = 0;
  for (const volatile uint64_t& number : kConstants) sum += number;
  return sum;
}

// Resident pages of mapped files, in kilobytes.
int64_t ResidentOfFiles() {
  std::ifstream status("/proc/self/status");
  std::string word;
  int64_t kilobytes = 0;
  while (status >> word) {
    if (word == "RssFile:") status >> kilobytes;
  }
  return kilobytes;
}

TEST(CodePages, AreGivenBackAndComeBackWhenTheyAreTouched) {
  const uint64_t sum = Sum();
  const int64_t before = ResidentOfFiles();
  ASSERT_GT(before, 1024);
  EXPECT_GT(ReleaseCodePages(), int64_t{1} << 20);
  EXPECT_LT(ResidentOfFiles(), before - 900);
  EXPECT_EQ(Sum(), sum);
}

}  // namespace
}  // namespace c3po
