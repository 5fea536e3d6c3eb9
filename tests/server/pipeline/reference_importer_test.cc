// An import over a model whose answers are made up: what is a sample's fault, and what ends the import.
#include "server/pipeline/reference_importer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "server/types/status_details.h"
#include "tests/server/pipeline/made_up_pipeline.h"

namespace c3po {
namespace {

using ::testing::HasSubstr;

// Each text's row is its length's, but for one that has none.
class CountingEmbedder final : public Embedder {
 public:
  absl::StatusOr<std::vector<std::vector<float>>> Embed(absl::Span<const std::string> texts) override {
    sizes.push_back(texts.size());
    if (on_embed) on_embed();
    std::vector<std::vector<float>> rows;
    for (const std::string& text : texts) {
      if (absl::StrContains(text, "nan")) return NotANumberError("the embedding of a text is not finite");
      const double angle = static_cast<double>(text.size());
      rows.push_back({static_cast<float>(std::cos(angle)), static_cast<float>(std::sin(angle)), 0, 0, 0, 0, 0, 0});
    }
    return rows;
  }
  int dimension() const override { return 8; }
  std::string digest() const override { return "counting"; }
  std::string name() const override { return "counting"; }
  std::vector<size_t> sizes;       // of the calls
  std::function<void()> on_embed;  // at each call; may be null
};

class ReferenceImportTest : public MadeUpPipelineTest {
 protected:
  using MadeUpPipelineTest::MadeUpPipelineTest;

  // The pool's one thread waits for `go`.
  void HoldWorker(absl::Notification& go) {
    ASSERT_TRUE(pool_.Submit(
        [&go] {
          go.WaitForNotification();
          return absl::OkStatus();
        },
        nullptr));
  }

  std::shared_ptr<ReferenceImport> Start() {
    ReferenceImport::Events events;
    events.on_room = [] {};
    events.on_batch = [this](std::vector<SampleVerdict> verdicts) {
      if (on_batch) on_batch();
      for (SampleVerdict& verdict : verdicts) verdicts_.push_back(std::move(verdict));
      if (absl::Notification* const batch = batch_; batch != nullptr) batch->Notify();
    };
    events.on_end = [this](const absl::Status& status) {
      status_ = status;
      ended_.Notify();
    };
    settings_.collection = "set";
    return ReferenceImport::Start(parts_, settings_, &pool_, cancelled_, std::move(events));
  }
  static ReferenceSample SampleOf(int number) {
    ReferenceSample sample;
    sample.prompt = absl::StrCat("What is ", number, "?");
    sample.answer = " 1";
    return sample;
  }

  ImportSettings settings_;
  const std::shared_ptr<std::atomic<bool>> cancelled_ = std::make_shared<std::atomic<bool>>(false);
  std::function<void()> on_batch;
  std::atomic<absl::Notification*> batch_{nullptr};
  std::vector<SampleVerdict> verdicts_;
  absl::Status status_;
  absl::Notification ended_;
  WorkerPool pool_{1, 4};  // Last: its jobs use the rest.
};

TEST_F(ReferenceImportTest, ASampleWithoutNumbersIsMalformedAndTheImportGoesOn) {
  const auto import = Start();
  EXPECT_TRUE(import->Push(1, SampleOf(1)));
  EXPECT_TRUE(import->Push(2, SampleOf(2)));
  import->Close();
  ended_.WaitForNotification();
  EXPECT_TRUE(status_.ok()) << status_;
  ASSERT_EQ(verdicts_.size(), 2U);
  for (const SampleVerdict& verdict : verdicts_) {
    EXPECT_EQ(verdict.outcome, SampleOutcome::kMalformed);
    EXPECT_THAT(verdict.message, HasSubstr("not finite"));
  }
}

TEST_F(ReferenceImportTest, AFaultOfTheEngineEndsTheImportAndIsNoSamplesFault) {
  model_.broken = true;
  const auto import = Start();
  import->Push(1, SampleOf(1));
  ended_.WaitForNotification();
  EXPECT_EQ(status_, absl::InternalError("the device is gone"));
  EXPECT_TRUE(verdicts_.empty());
  EXPECT_FALSE(import->Push(2, SampleOf(2)));  // Nothing follows.
  import->Close();
}

TEST_F(ReferenceImportTest, AnExceptionEndsTheImportAlone) {
  on_batch = [] { throw std::bad_alloc(); };
  const auto import = Start();
  import->Push(1, SampleOf(1));
  ended_.WaitForNotification();
  EXPECT_TRUE(absl::IsResourceExhausted(status_)) << status_;
}

// With one thread: an import that waits for samples does not keep it.
TEST_F(ReferenceImportTest, OneThreadServesAnImportWhileAnotherWaits) {
  absl::Notification first_batch;
  batch_ = &first_batch;
  const auto waiting = Start();
  waiting->Push(1, SampleOf(1));
  first_batch.WaitForNotification();
  batch_ = nullptr;
  absl::Notification ran;
  ASSERT_TRUE(pool_.Submit(
      [&] {
        ran.Notify();
        return absl::OkStatus();
      },
      nullptr));
  ran.WaitForNotification();
  EXPECT_FALSE(ended_.HasBeenNotified());
  waiting->Close();
  ended_.WaitForNotification();
  EXPECT_TRUE(status_.ok()) << status_;
}

TEST_F(ReferenceImportTest, AFullQueueOfBytesAsksForAPause) {
  absl::Notification go;
  HoldWorker(go);
  const auto import = Start();
  ReferenceSample large = SampleOf(1);
  large.prompt.assign(ReferenceImport::kQueueBytes / 2, 'x');
  EXPECT_TRUE(import->Push(1, large));
  EXPECT_FALSE(import->Push(2, large));
  import->Close();
  go.Notify();
  ended_.WaitForNotification();
  ASSERT_EQ(verdicts_.size(), 2U);  // Both are too long for a sample, which is theirs.
  EXPECT_EQ(verdicts_[0].outcome, SampleOutcome::kMalformed);
}

// The same, with an encoder. Its one thread is busy until all samples are there, so that they are one batch.
class EncodedImportTest : public ReferenceImportTest {
 protected:
  explicit EncodedImportTest(const BatcherLimits& limits = BatcherLimits()) : ReferenceImportTest(limits) {
    model_.answers = true;
    OpenCatalog(encoded_.digest());
    parts_.embedding = &encoded_;
  }

  // As one batch; `before` it runs and after all samples are there.
  void RunAtOnce(const std::vector<ReferenceSample>& samples, const std::function<void()>& before = nullptr) {
    absl::Notification go;
    HoldWorker(go);
    const auto import = Start();
    for (size_t i = 0; i < samples.size(); ++i) import->Push(i, samples[i]);
    import->Close();
    if (before) before();
    go.Notify();
    ended_.WaitForNotification();
  }
  void ImportAtOnce(const std::vector<ReferenceSample>& samples) {
    RunAtOnce(samples);
    ASSERT_TRUE(status_.ok()) << status_;
    ASSERT_EQ(verdicts_.size(), samples.size());
  }

  const std::shared_ptr<CountingEmbedder> embedder_ = std::make_shared<CountingEmbedder>();
  const QueryEmbedding encoded_{embedder_, model_.shape(), 0};
};

TEST_F(EncodedImportTest, ABatchIsEmbeddedInOneCall) {
  std::vector<ReferenceSample> samples;
  for (int i = 0; i < 5; ++i) samples.push_back(SampleOf(i == 4 ? 100 : i));
  samples.push_back(SampleOf(5));
  samples.back().answer.clear();  // Not well-formed: it is not embedded.
  ImportAtOnce(samples);
  EXPECT_THAT(embedder_->sizes, testing::ElementsAre(5U));
  EXPECT_EQ(verdicts_[5].outcome, SampleOutcome::kMalformed);
  for (const int i : {0, 4}) {
    const auto record = store_->Get(verdicts_[i].id);
    ASSERT_TRUE(record.ok()) << record.status() << verdicts_[i].message;
    EXPECT_EQ(record->embedding, embedder_->Embed({samples[i].prompt})->front());
  }
}

TEST_F(EncodedImportTest, ATextWithoutAnEmbeddingIsMalformedAndTheOthersGoOn) {
  std::vector<ReferenceSample> samples;
  for (int i = 0; i < 3; ++i) samples.push_back(SampleOf(i));
  samples[1].prompt = "nan";
  ImportAtOnce(samples);
  EXPECT_THAT(verdicts_[1].message, HasSubstr("not finite"));
  EXPECT_EQ(verdicts_[1].outcome, SampleOutcome::kMalformed);
  for (const int i : {0, 2}) {
    EXPECT_NE(verdicts_[i].outcome, SampleOutcome::kMalformed) << verdicts_[i].message;
    EXPECT_TRUE(store_->Get(verdicts_[i].id).ok());
  }
}

TEST_F(EncodedImportTest, APromptIsEncodedOnceForAllItsChoices) {
  ReferenceSample sample;
  while (sample.prompt.size() < 1500) sample.prompt += "What is next? ";
  sample.choices = {" one", " two", " three", " four"};
  sample.answer = " two";
  const int64_t before = tokenizer_->bytes_encoded();
  ImportAtOnce({sample});
  EXPECT_NE(verdicts_[0].outcome, SampleOutcome::kMalformed) << verdicts_[0].message;
  // Once, and once more in search of the seam.
  EXPECT_LT(tokenizer_->bytes_encoded() - before, static_cast<int64_t>(2 * sample.prompt.size() + 5 * 60));
}

// A collection with two answers to one question, of which an import with `replace` deletes the one that it does not
// bring. The samples that it brings are stored already, so that the engine never sees them.
class CancelledImportTest : public EncodedImportTest {
 protected:
  CancelledImportTest() {
    const auto stored = [](const char* answer) {
      ReferenceRecord record = MakeReference("set", 1);
      record.sample = {"What is 1?", answer, {}, {}, ""};
      record.id = ReferenceId("set", record.sample);
      record.embedder_digest = "counting";
      return record;
    };
    EXPECT_TRUE(store_->Add({stored(" 1"), stored(" 2")}).ok());
    OpenCatalog("counting");
    settings_.replace = true;
  }

  void ExpectCancelledWithNothingDone() {
    EXPECT_TRUE(absl::IsCancelled(status_)) << status_;
    EXPECT_TRUE(verdicts_.empty());
    EXPECT_EQ(store_->List("set", "", 10)->size(), 2U);
    EXPECT_EQ(store_->generation(), 1);
  }
};

TEST_F(CancelledImportTest, WhatIsNotCancelledDeletesTheOtherAnswer) {
  ImportAtOnce({SampleOf(1)});
  EXPECT_EQ(verdicts_[0].outcome, SampleOutcome::kDuplicate);
  EXPECT_EQ(verdicts_[0].replaced_ids.size(), 1U);
  EXPECT_EQ(store_->List("set", "", 10)->size(), 1U);
}

TEST_F(CancelledImportTest, DuplicatesThatWaitedAreNotSettledAfterTheCancel) {
  RunAtOnce({SampleOf(1)}, [this] { *cancelled_ = true; });
  ExpectCancelledWithNothingDone();
}

// Its only token is scored by the pass amid which the call is cancelled, so the sample itself is judged whole.
TEST_F(CancelledImportTest, ABatchThatIsCancelledWhileItIsJudgedChangesNothing) {
  model_.on_forward = [this] { *cancelled_ = true; };
  ReferenceSample unknown = SampleOf(2);
  unknown.answer = "1";
  RunAtOnce({SampleOf(1), unknown});
  ExpectCancelledWithNothingDone();
}

// One sample at a time: the others wait for its place.
class OneAtATime : public EncodedImportTest {
 protected:
  static BatcherLimits OnePlace() {
    BatcherLimits limits;
    limits.sequences_max = 1;
    return limits;
  }
  OneAtATime() : EncodedImportTest(OnePlace()) {}
};

TEST_F(OneAtATime, SamplesOfACancelledImportThatOnlyWaitedAreNotCharged) {
  constexpr int64_t kPerMinute = 1000000;
  const absl::Time now = absl::UnixEpoch() + absl::Hours(1);
  const auto limiter = RateLimiter::Make({0, kPerMinute, 0}, nullptr, [now] { return now; });
  settings_.rates = *limiter->Admit("ann", {});
  // The engine runs the first sample until all are with it, and the call is cancelled.
  absl::Notification runs, all_there;
  embedder_->on_embed = [&] {
    runs.WaitForNotification();
    *cancelled_ = true;
    all_there.Notify();
  };
  model_.on_forward = [&] {
    if (!runs.HasBeenNotified()) runs.Notify();
    all_there.WaitForNotification();
  };
  std::vector<ReferenceSample> samples;
  for (int i = 1; i <= 5; ++i) samples.push_back(SampleOf(i));
  ReferenceRecord record;
  record.sample = samples[0];
  const NeighborCase tokens = *text_.NeighborTokens(record, /*with_choices=*/false);
  RunAtOnce(samples);
  EXPECT_TRUE(absl::IsCancelled(status_)) << status_;
  const auto other = *limiter->Admit("ann", {});
  const auto cost = static_cast<int64_t>(tokens.prompt.size() + tokens.continuations[0].size());
  EXPECT_FALSE(other->Charge(kPerMinute - cost + 1).ok()) << "the one that ran is paid";
  EXPECT_TRUE(other->Charge(kPerMinute - cost).ok()) << "those that waited are not";
}

}  // namespace
}  // namespace c3po
