// What a caller is charged for work that the engine then does not begin: all of it is given back.
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "server/pipeline/collection_learning.h"
#include "server/pipeline/reference_importer.h"
#include "tests/server/pipeline/made_up_pipeline.h"

namespace c3po {
namespace {

constexpr int64_t kPerMinute = 1000000;

// A caller with a million tokens a minute, and a clock that stands.
class ChargedCallTest : public MadeUpPipelineTest {
 protected:
  ChargedCallTest() {
    std::vector<ReferenceRecord> records = MakeReferences("set", 0, 40);
    for (ReferenceRecord& record : records) record.embedder_digest = embedding_.digest();
    EXPECT_TRUE(store_->Add(records).ok());
    parts_.workers = &workers_;
    context_.rates = *limiter_->Admit("ann", {});
  }

  // The tokens that are left of the minute's worth.
  int64_t Left() {
    const auto other = *limiter_->Admit("ann", {});
    int64_t least = 0, most = kPerMinute;
    while (least < most) {
      const int64_t middle = (least + most + 1) / 2;
      if (other->Charge(middle).ok()) {
        other->Used(0);
        least = middle;
      } else {
        most = middle - 1;
      }
    }
    return least;
  }
  // The call ended with `code`, and the whole minute's worth is there.
  void ExpectGivenBack(absl::StatusCode code) {
    EXPECT_EQ(status_.code(), code) << status_;
    EXPECT_EQ(Left(), kPerMinute);
  }
  void End(const absl::Status& status) {
    status_ = status;
    ended_.Notify();
  }

  void Tune() {
    CollectionLearning learning(parts_, store_.get(), 2);
    TuneRequest request;
    request.context = context_;
    request.collection = "set";
    request.tuner.critical_layers = {2};
    const auto on_done = [this](const absl::StatusOr<std::optional<CollectionPrior>>& prior) { End(prior.status()); };
    const absl::Status begun = learning.TunePrior(
        std::move(request), [](const PriorTuner::Epoch&) {}, on_done);
    ASSERT_TRUE(begun.ok()) << begun;
    ended_.WaitForNotification();
  }

  void TuneOffset() {
    std::vector<ReferenceRecord> records = MakeReferences("labels", 0, 20);
    for (ReferenceRecord& record : records) {
      record.embedder_digest = embedding_.digest();
      record.sample.choices = {" no", " yes"};
      record.sample.answer = " yes";
      record.id = ReferenceId("labels", record.sample);
    }
    EXPECT_TRUE(store_->Add(records).ok());
    LabelOffsets offsets(&feed_, kModelDigest, embedding_.digest());
    parts_.offsets = &offsets;
    CollectionLearning learning(parts_, store_.get(), 2);
    OffsetRequest request;
    request.context = context_;
    request.settings.collection = "labels";
    request.settings.method = Method::kNone;
    request.settings.critical_layers = {2};
    request.settings.core_experts = 0;
    const auto on_done = [this](const absl::StatusOr<OffsetTuner::Outcome>& outcome) { End(outcome.status()); };
    const absl::Status begun = learning.TuneOffset(
        std::move(request), [](const OffsetTuner::Progress&) {}, on_done);
    ASSERT_TRUE(begun.ok()) << begun;
    ended_.WaitForNotification();
  }

  void Amortize() {
    CollectionLearning learning(parts_, store_.get(), 2);
    AmortizeRequest request;
    request.context = context_;
    request.settings.collection = "set";
    request.settings.rule = ApplicationRule::kRouterShift;
    request.settings.critical_layers = {2};
    request.settings.core_experts = 0;
    int64_t total = 0;
    const auto on_progress = [&](const CollectionLearning::AmortizeProgress& progress) { total = progress.total; };
    const absl::Status begun =
        learning.Amortize(std::move(request), on_progress, [this](const absl::Status& status) { End(status); });
    ASSERT_TRUE(begun.ok()) << begun;
    ended_.WaitForNotification();
    EXPECT_EQ(total, 40);
  }

  void Embed() {
    GenerationPipeline pipeline(parts_);
    const auto on_done = [this](const absl::StatusOr<std::vector<float>>& embedding) { End(embedding.status()); };
    const absl::Status begun = pipeline.Embed(context_, "What is one and one?", on_done);
    ASSERT_TRUE(begun.ok()) << begun;
    ended_.WaitForNotification();
  }

  // Settles the charge at the end of the call, as server/rpc does.
  class Listener final : public GenerationListener {
   public:
    explicit Listener(ChargedCallTest* test) : test_(test) {}
    void OnOptimization(const OptimizationReport&) override {}
    void OnChunk(TextChunk) override {}
    void OnScores(std::vector<ContinuationScore>) override {}
    void OnDone(const absl::Status& status, const CallSummary& summary) override {
      test_->context_.Used(summary.cost);
      test_->prompt_tokens_ = summary.usage.prompt_tokens;
      test_->End(status);
    }

   private:
    ChargedCallTest* const test_;
  };

  void Generate() {
    GenerationPipeline pipeline(parts_);
    GenerateCall call;
    call.context = context_;
    call.input = std::string("What is one and one?");
    call.sampling.max_tokens = 4;
    call.sampling.temperature = 1;
    call.sampling.n = 2;
    call.sampling.ignore_eos = true;
    call.optimization.method = Method::kNone;
    call.optimization.critical_layers = {2};
    call.optimization.core_experts = 0;
    const absl::Status begun = pipeline.Generate(std::move(call), std::make_shared<Listener>(this));
    ASSERT_TRUE(begun.ok()) << begun;
    ended_.WaitForNotification();
  }

  void Score() {
    GenerationPipeline pipeline(parts_);
    ScoreCall call;
    call.context = context_;
    call.input = std::string("What is one and one?");
    call.continuations = {"1", "2"};
    call.optimization.method = Method::kNone;
    call.optimization.critical_layers = {2};
    call.optimization.core_experts = 0;
    const absl::Status begun = pipeline.Score(std::move(call), std::make_shared<Listener>(this));
    ASSERT_TRUE(begun.ok()) << begun;
    ended_.WaitForNotification();
  }

  const absl::Time now_ = absl::UnixEpoch() + absl::Hours(1);
  const std::shared_ptr<RateLimiter> limiter_ = RateLimiter::Make({0, kPerMinute, 0}, nullptr, [this] { return now_; });
  CallContext context_;
  absl::Notification ended_;
  absl::Status status_;
  int prompt_tokens_ = 0;
  WorkerPool workers_{1, 8};  // Goes first: its jobs end the calls.
};

// An engine that takes nothing more, as while the server shuts down.
class GivenBackTest : public ChargedCallTest {
 protected:
  GivenBackTest() { engine_.Stop(absl::ZeroDuration()); }
};

TEST_F(GivenBackTest, TuningThatTheEngineDoesNotTakeCostsNothing) {
  Tune();
  ExpectGivenBack(absl::StatusCode::kUnavailable);
}

TEST_F(GivenBackTest, AnOffsetWhoseScoresTheEngineDoesNotTakeCostsNothing) {
  TuneOffset();
  ExpectGivenBack(absl::StatusCode::kUnavailable);
}

TEST_F(GivenBackTest, AmortizingThatTheEngineDoesNotTakeCostsNothing) {
  Amortize();
  ExpectGivenBack(absl::StatusCode::kUnavailable);
}

TEST_F(GivenBackTest, ATextThatTheEngineDoesNotTakeCostsNothing) {
  Embed();
  ExpectGivenBack(absl::StatusCode::kUnavailable);
}

TEST_F(GivenBackTest, SamplesThatTheEngineDoesNotTakeCostNothing) {
  ImportSettings settings;
  settings.collection = "set";
  settings.rates = context_.rates;
  ReferenceImport::Events events;
  events.on_room = [] {};
  events.on_batch = [](const std::vector<SampleVerdict>&) {};
  events.on_end = [this](const absl::Status& status) { End(status); };
  const auto import = ReferenceImport::Start(parts_, settings, &workers_, nullptr, std::move(events));
  import->Push(1, {"What is one and one?", " 2", {" 1", " 2"}, {}, ""});
  import->Close();
  ended_.WaitForNotification();
  ExpectGivenBack(absl::StatusCode::kUnavailable);
}

// An engine that serves others, and a call whose time is up when the engine comes to it.
class OnlyWaitedTest : public ChargedCallTest {
 protected:
  OnlyWaitedTest() {
    model_.answers = true;
    context_.deadline = absl::InfinitePast();
  }
};

TEST_F(OnlyWaitedTest, AGenerationCostsNothing) {
  Generate();
  EXPECT_GT(prompt_tokens_, 0) << "it came as far as the queue";
  ExpectGivenBack(absl::StatusCode::kDeadlineExceeded);
}

TEST_F(OnlyWaitedTest, ATextToEmbedCostsNothing) {
  Embed();
  ExpectGivenBack(absl::StatusCode::kDeadlineExceeded);
}

TEST_F(OnlyWaitedTest, TuningCostsNothing) {
  Tune();
  ExpectGivenBack(absl::StatusCode::kDeadlineExceeded);
}

TEST_F(OnlyWaitedTest, AnOffsetCostsNothing) {
  TuneOffset();
  ExpectGivenBack(absl::StatusCode::kDeadlineExceeded);
}

TEST_F(OnlyWaitedTest, AmortizingCostsNothing) {
  Amortize();
  ExpectGivenBack(absl::StatusCode::kDeadlineExceeded);
}

// The same calls, which run.
class PaidCallTest : public ChargedCallTest {
 protected:
  PaidCallTest() { model_.answers = true; }
};

TEST_F(PaidCallTest, AGenerationPaysItsPromptAndWhatItGenerated) {
  Generate();
  EXPECT_TRUE(status_.ok()) << status_;
  EXPECT_EQ(kPerMinute - Left(), prompt_tokens_ + 2 * 4);
}

TEST_F(PaidCallTest, AScorePaysItsPromptAndItsContinuations) {
  Score();
  EXPECT_TRUE(status_.ok()) << status_;
  EXPECT_EQ(kPerMinute - Left(), prompt_tokens_ + 2);
}

TEST_F(PaidCallTest, ATextToEmbedPaysItsTokens) {
  Embed();
  EXPECT_TRUE(status_.ok()) << status_;
  EXPECT_LT(Left(), kPerMinute);
}

}  // namespace
}  // namespace c3po
