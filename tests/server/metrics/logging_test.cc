#include "server/metrics/logging.h"

#include <fcntl.h>
#include <unistd.h>

#include <cmath>
#include <limits>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace c3po {
namespace {

using Json = nlohmann::ordered_json;

std::vector<Json> LinesOf(const std::string& text) {
  std::vector<Json> lines;
  for (absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    lines.push_back(Json::parse(line.begin(), line.end()));  // Throws, and fails the test, on a bad line.
  }
  return lines;
}

class Logging : public ::testing::Test {
 protected:
  Logging() { SetLogStream(&stream_); }
  ~Logging() override {
    SetLogStream(nullptr);
    SetLogLevel(LogLevel::kInfo);
  }

  std::vector<Json> Lines() const { return LinesOf(stream_.str()); }

  std::ostringstream stream_;
};

TEST_F(Logging, ALineIsAnObjectWithItsFieldsInOrder) {
  Log(LogLevel::kWarning, "request_finished", "r-1",
      {{"tokens", 17}, {"decode_seconds", 0.25}, {"cancelled", false}, {"collection", "science"}});
  const std::string text = stream_.str();
  ASSERT_EQ(text.back(), '\n');
  EXPECT_TRUE(absl::StrContains(text, R"("level":"warning","event":"request_finished","request_id":"r-1",)"
                                      R"("tokens":17,"decode_seconds":0.25,"cancelled":false,"collection":"science"})"))
      << text;
  absl::Time time;
  std::string error;
  const std::string stamp = Lines().at(0).at("time");
  ASSERT_TRUE(absl::ParseTime(absl::RFC3339_full, stamp, &time, &error)) << stamp << ": " << error;
  EXPECT_LT(absl::AbsDuration(absl::Now() - time), absl::Minutes(1));
  EXPECT_EQ(stamp.size(), std::string("2026-01-31T12:00:00.123456Z").size());
}

TEST_F(Logging, AnyTextMakesValidJson) {
  const std::string tricky = "quote\" backslash\\ newline\n tab\t bell\x07 brace} {} %s \xE2\x82\xAC";
  Log(LogLevel::kInfo, "event", "id\"\n", {{"text", tricky}, {"key\"", "v"}});
  const Json line = Lines().at(0);
  EXPECT_EQ(line.at("text"), tricky);
  EXPECT_EQ(line.at("request_id"), "id\"\n");
  EXPECT_EQ(line.at("key\""), "v");
}

TEST_F(Logging, InvalidUtf8BecomesTheReplacementCharacter) {
  const std::string nul_inside("a\0b", 3);
  Log(LogLevel::kInfo, "event", "", {{"bad", "x\xFFy\xC3"}, {"nul", nul_inside}});
  const Json line = Lines().at(0);
  EXPECT_EQ(line.at("bad"), "x\xEF\xBF\xBDy\xEF\xBF\xBD");
  EXPECT_EQ(line.at("nul"), nul_inside);
}

TEST_F(Logging, NumbersKeepTheirValue) {
  Log(LogLevel::kInfo, "event", "",
      {{"seed", std::numeric_limits<uint64_t>::max()},
       {"low", std::numeric_limits<int64_t>::min()},
       {"nan", std::nan("")},
       {"third", 1.0 / 3.0}});
  const Json line = Lines().at(0);
  EXPECT_EQ(line.at("seed").get<uint64_t>(), std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(line.at("low").get<int64_t>(), std::numeric_limits<int64_t>::min());
  EXPECT_TRUE(line.at("nan").is_null());
  EXPECT_EQ(line.at("third").get<double>(), 1.0 / 3.0);
}

TEST_F(Logging, AnEmptyRequestIdIsLeftOutAndReservedKeysAreKept) {
  Log(LogLevel::kInfo, "event", "", {{"request_id", "forged"}, {"level", "forged"}, {"a", 1}, {"a", 2}});
  const Json line = Lines().at(0);
  EXPECT_FALSE(line.contains("request_id"));
  EXPECT_EQ(line.at("level"), "info");
  EXPECT_EQ(line.at("a"), 1);
}

TEST_F(Logging, LevelsBelowTheOneSetAreDropped) {
  Log(LogLevel::kDebug, "hidden", "");
  SetLogLevel(LogLevel::kDebug);
  EXPECT_EQ(GetLogLevel(), LogLevel::kDebug);
  Log(LogLevel::kDebug, "shown", "");
  SetLogLevel(LogLevel::kError);
  Log(LogLevel::kWarning, "hidden", "");
  Log(LogLevel::kError, "shown", "");
  const std::vector<Json> lines = Lines();
  ASSERT_EQ(lines.size(), 2u);
  for (const Json& line : lines) EXPECT_EQ(line.at("event"), "shown");
}

TEST_F(Logging, LevelNamesParse) {
  EXPECT_EQ(*ParseLogLevel("debug"), LogLevel::kDebug);
  EXPECT_EQ(*ParseLogLevel("info"), LogLevel::kInfo);
  EXPECT_EQ(*ParseLogLevel("warning"), LogLevel::kWarning);
  EXPECT_EQ(*ParseLogLevel("error"), LogLevel::kError);
  const absl::Status status = ParseLogLevel("loud").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::StrContains(status.message(), "\"loud\""));
}

TEST_F(Logging, LinesOfManyThreadsDoNotInterleave) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([t] {
      for (int i = 0; i < 200; ++i) Log(LogLevel::kInfo, "event", absl::StrCat(t), {{"text", std::string(100, 'x')}});
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(Lines().size(), 800u);
}

// Standard error as a pipe, until the end of the test.
class PipeForErrors {
 public:
  PipeForErrors() {
    int ends[2];
    EXPECT_EQ(pipe(ends), 0);
    from_ = ends[0];
    saved_ = dup(STDERR_FILENO);
    dup2(ends[1], STDERR_FILENO);
    close(ends[1]);
  }
  ~PipeForErrors() {
    dup2(saved_, STDERR_FILENO);
    close(saved_);
    close(from_);
  }
  // Reads on a thread of its own until standard error is what it was before.
  std::string ReadAll() {
    std::string text;
    char part[4096];
    for (ssize_t got; (got = read(from_, part, sizeof(part))) > 0;) text.append(part, static_cast<size_t>(got));
    return text;
  }
  void Restore() { dup2(saved_, STDERR_FILENO); }

 private:
  int from_ = -1, saved_ = -1;
};

void ExpectLinesInOrder(const std::string& text, int lines) {
  int next = 0;
  for (const Json& read : LinesOf(text)) EXPECT_EQ(read.at("line"), next++);
  EXPECT_EQ(next, lines);
}

TEST(BackgroundLog, AReaderThatDoesNotReadCostsLinesAndNoTime) {
  constexpr int kLines = 20000, kWaiting = 100;
  PipeForErrors errors;
  WriteLogInBackground(kWaiting);
  // A pipe holds 64 KiB: were the lines written here, this loop would never end.
  for (int i = 0; i < kLines; ++i) Log(LogLevel::kInfo, "event", "", {{"line", i}});
  EXPECT_FALSE(FlushLog(absl::Milliseconds(20)));
  const int64_t lost = LogLinesLost();
  EXPECT_GT(lost, kLines / 2);
  std::string text;
  std::thread reader([&] { text = errors.ReadAll(); });
  EXPECT_TRUE(FlushLog(absl::Seconds(60)));
  Log(LogLevel::kInfo, "last", "");
  EXPECT_TRUE(FlushLog(absl::Seconds(60)));
  SetLogStream(nullptr);
  errors.Restore();
  reader.join();
  int lines = 0, told = 0, newest = -1;
  std::string event;
  for (const Json& read : LinesOf(text)) {
    event = read.at("event");
    if (event == "log_lines_lost") told += read.at("lines").get<int>();
    if (event != "event") continue;
    ++lines;
    EXPECT_GT(read.at("line").get<int>(), newest);
    newest = read.at("line");
  }
  EXPECT_EQ(event, "last");
  EXPECT_EQ(newest, kLines - 1) << "the oldest give way";
  EXPECT_EQ(lines + LogLinesLost(), kLines);
  EXPECT_GT(told, 0);
}

TEST(BackgroundLog, WritesWhatWasLoggedInItsOrder) {
  PipeForErrors errors;
  std::string text;
  std::thread reader([&] { text = errors.ReadAll(); });
  WriteLogInBackground(8192);
  const int64_t lost = LogLinesLost();
  for (int i = 0; i < 2000; ++i) Log(LogLevel::kInfo, "event", "", {{"line", i}});
  EXPECT_TRUE(FlushLog(absl::Seconds(60)));
  EXPECT_EQ(LogLinesLost(), lost);
  SetLogStream(nullptr);
  errors.Restore();
  reader.join();
  ExpectLinesInOrder(text, 2000);
}

TEST(BackgroundLog, ADescriptorThatDoesNotBlockLosesNothing) {
  PipeForErrors errors;
  ASSERT_EQ(fcntl(STDERR_FILENO, F_SETFL, fcntl(STDERR_FILENO, F_GETFL) | O_NONBLOCK), 0);
  WriteLogInBackground(8192);
  const std::string long_text(1000, 'x');  // 2 MB: the pipe is full long before somebody reads.
  for (int i = 0; i < 2000; ++i) Log(LogLevel::kInfo, "event", "", {{"line", i}, {"text", long_text}});
  EXPECT_FALSE(FlushLog(absl::Milliseconds(20)));
  std::string text;
  std::thread reader([&] { text = errors.ReadAll(); });
  EXPECT_TRUE(FlushLog(absl::Seconds(60)));
  SetLogStream(nullptr);
  errors.Restore();
  reader.join();
  ExpectLinesInOrder(text, 2000);
}

TEST(LogSampler, AdmitsTheFirstLinesOfASecondAndCountsTheRest) {
  LogSampler sampler(2);
  const absl::Time second = absl::FromUnixSeconds(1000);
  EXPECT_EQ(sampler.Admit(second), 0);
  EXPECT_EQ(sampler.Admit(second + absl::Milliseconds(1)), 0);
  EXPECT_EQ(sampler.Admit(second + absl::Milliseconds(2)), std::nullopt);
  EXPECT_EQ(sampler.Admit(second + absl::Milliseconds(999)), std::nullopt);
  EXPECT_EQ(sampler.Admit(second + absl::Seconds(1)), 2);
  EXPECT_EQ(sampler.Admit(second + absl::Seconds(1)), 0);
  EXPECT_EQ(sampler.Admit(second + absl::Seconds(1)), std::nullopt);
  EXPECT_EQ(sampler.Admit(second + absl::Seconds(9)), 1);
}

}  // namespace
}  // namespace c3po
