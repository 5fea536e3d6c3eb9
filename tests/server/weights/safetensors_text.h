#ifndef C3PO_TESTS_SERVER_WEIGHTS_SAFETENSORS_TEXT_H_
#define C3PO_TESTS_SERVER_WEIGHTS_SAFETENSORS_TEXT_H_

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/string_view.h"
#include "gtest/gtest.h"

namespace c3po {

// The bytes of a safetensors file with this header and data.
inline std::string SafetensorsText(absl::string_view header, absl::string_view data) {
  std::string text;
  for (int i = 0; i < 8; ++i) text.push_back(static_cast<char>(static_cast<uint64_t>(header.size()) >> (8 * i)));
  text.append(header.data(), header.size());
  text.append(data.data(), data.size());
  return text;
}

// A folder for one test, empty at the start and removed at the end.
class TestFolder {
 public:
  TestFolder() {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    std::string name = std::string("c3po_") + info->test_suite_name() + "_" + info->name();
    std::replace(name.begin(), name.end(), '/', '_');  // Of a parameterized test.
    path_ = std::filesystem::path(testing::TempDir()) / (name + "_" + std::to_string(getpid()));
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~TestFolder() { std::filesystem::remove_all(path_); }

  std::string path() const { return path_.string(); }
  std::string Write(const std::string& name, absl::string_view text) const {
    const std::filesystem::path file = path_ / name;
    std::ofstream(file, std::ios::binary) << text;
    return file.string();
  }

 private:
  std::filesystem::path path_;
};

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_WEIGHTS_SAFETENSORS_TEXT_H_
