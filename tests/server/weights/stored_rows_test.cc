#include "server/weights/stored_rows.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "server/weights/stored_elements.h"
#include "tests/server/weights/safetensors_text.h"

namespace c3po {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using Json = nlohmann::json;

constexpr int64_t kRows = 5, kColumns = 3;

// "before" of 7 bytes, so that "table" [5, 3] begins anywhere, and "line".
class StoredTable : public testing::Test {
 protected:
  void WriteTable(const std::string& type) {
    std::string data = "1234567";
    const size_t begin = data.size();
    for (int64_t i = 0; i < kRows * kColumns; ++i) {
      const float value = 0.75f * static_cast<float>(i) - 4;  // Of a few bits: exact in any type.
      uint32_t bits;
      std::memcpy(&bits, &value, sizeof(bits));
      if (type == "F32") {
        data.append(reinterpret_cast<const char*>(&bits), 4);
      } else {
        const auto half = static_cast<uint16_t>(bits >> 16);
        data.append(reinterpret_cast<const char*>(&half), 2);
      }
    }
    const size_t end = data.size();
    data += "12";
    const Json header = {{"before", {{"dtype", "U8"}, {"shape", {7}}, {"data_offsets", {0, begin}}}},
                         {"table", {{"dtype", type}, {"shape", {kRows, kColumns}}, {"data_offsets", {begin, end}}}},
                         {"line", {{"dtype", "BF16"}, {"shape", {1}}, {"data_offsets", {end, end + 2}}}}};
    folder_.Write("config.json", "{}");
    folder_.Write("model.safetensors", SafetensorsText(header.dump(), data));
  }
  absl::StatusOr<std::unique_ptr<StoredRows>> Open(const std::string& name = "table") const {
    const auto checkpoint = Checkpoint::Open(folder_.path());
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return StoredRows::Open(**checkpoint, name);  // Which is gone after it.
  }
  static std::vector<float> RowOf(int64_t row) {
    std::vector<float> values;
    for (int64_t c = 0; c < kColumns; ++c) values.push_back(0.75f * static_cast<float>(row * kColumns + c) - 4);
    return values;
  }

  TestFolder folder_;
};

TEST_F(StoredTable, GivesItsRowsInAnyOrderAndAnyType) {
  for (const char* type : {"F32", "BF16"}) {
    WriteTable(type);
    const auto rows = Open();
    ASSERT_TRUE(rows.ok()) << rows.status();
    EXPECT_EQ((*rows)->rows(), kRows);
    EXPECT_EQ((*rows)->columns(), kColumns);
    std::vector<float> got(4 * kColumns);
    ASSERT_TRUE((*rows)->Read({4, 0, 0, 2}, got.data()).ok());
    std::vector<float> expected;
    for (const int64_t row : {4, 0, 0, 2}) {
      for (const float value : RowOf(row)) expected.push_back(value);
    }
    EXPECT_EQ(got, expected) << type;
    EXPECT_TRUE((*rows)->Read({}, nullptr).ok());
  }
}

TEST_F(StoredTable, OutlivesItsFilesName) {
  WriteTable("F32");
  const auto rows = Open();
  ASSERT_TRUE(rows.ok()) << rows.status();
  folder_.Write("other", "another file");
  std::filesystem::rename(folder_.path() + "/other", folder_.path() + "/model.safetensors");
  std::vector<float> got(kColumns);
  ASSERT_TRUE((*rows)->Read({3}, got.data()).ok());
  EXPECT_EQ(got, RowOf(3));
}

TEST_F(StoredTable, SaysThatItsFileWasWrittenTo) {
  const auto written = [this](auto change) {
    WriteTable("F32");
    const auto rows = Open();
    EXPECT_TRUE(rows.ok()) << rows.status();
    change(folder_.path() + "/model.safetensors");
    std::vector<float> got(kColumns);
    return (*rows)->Read({3}, got.data());
  };
  const absl::Status in_place = written([](const std::string& path) {
    std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(-4, std::ios::end);
    file.put('x').flush();
    // A clock that moved by less than its tick since then would show the same time.
    std::filesystem::last_write_time(path, std::filesystem::last_write_time(path) + std::chrono::seconds(1));
  });
  EXPECT_EQ(in_place.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(in_place.message()), AllOf(HasSubstr("model.safetensors"), HasSubstr("written to")));
  const absl::Status shortened = written([](const std::string& path) { std::filesystem::resize_file(path, 20); });
  EXPECT_EQ(shortened.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(shortened.message()), HasSubstr("model.safetensors"));
}

TEST_F(StoredTable, RefusesWhatIsNoMatrixOfNumbersByItsName) {
  WriteTable("F32");
  for (const char* name : {"before", "line"}) {
    const auto rows = Open(name);
    EXPECT_EQ(rows.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(rows.status().message()), HasSubstr(name));
  }
  EXPECT_EQ(Open("nothing").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(StoredTable, ServesSeveralThreads) {
  WriteTable("BF16");
  const auto rows = Open();
  ASSERT_TRUE(rows.ok()) << rows.status();
  std::vector<std::thread> threads;
  std::vector<std::vector<float>> got(4, std::vector<float>(kColumns));
  for (size_t i = 0; i < got.size(); ++i) {
    threads.emplace_back([&, i] {
      for (int round = 0; round < 200; ++round) {
        EXPECT_TRUE((*rows)->Read({static_cast<int64_t>(i)}, got[i].data()).ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < got.size(); ++i) EXPECT_EQ(got[i], RowOf(static_cast<int64_t>(i)));
}

TEST(CheckpointPlaces, AreOfFilesAlone) {
  const std::vector<std::byte> bytes(8);
  const auto checkpoint =
      Checkpoint::Of("elsewhere", "{}", {{"x", TensorView{DType::kF32, {2}, bytes}}}, /*source=*/nullptr);
  EXPECT_EQ(checkpoint->PlaceOf("x").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(checkpoint->PlaceOf("y").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace c3po
