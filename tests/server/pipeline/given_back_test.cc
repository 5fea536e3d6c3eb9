// What a caller is charged for work that the engine then does not take: all of it is given back.
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "server/pipeline/collection_learning.h"
#include "server/pipeline/generation_pipeline.h"
#include "tests/index/store/random_reference.h"
#include "tests/server/partial_model.h"
#include "tests/server/text/golden_case.h"

namespace c3po {
namespace {

constexpr int64_t kPerMinute = 1000000;

class ShapeAlone final : public PartialModel {
 public:
  explicit ShapeAlone(int vocabulary) {
    shape_.digest = kModelDigest;
    shape_.vocabulary_size = vocabulary;
    shape_.layers = shape_.moe_layers = 3;
    shape_.experts = 4;
    shape_.hidden_size = 8;
    shape_.context_window = 4096;
  }
};

// An engine that takes nothing more, as while the server shuts down; a caller with a million tokens a minute, and a
// clock that stands.
class GivenBackTest : public testing::Test {
 protected:
  GivenBackTest()
      : tokenizer_(*Tokenizer::Load(GoldenPath("byte_level.json"))),
        text_(tokenizer_, absl::FailedPreconditionError("no chat"), 4096, tokenizer_->vocabulary_size()),
        model_(tokenizer_->vocabulary_size()),
        engine_(&model_, BatcherLimits(), 64, nullptr),
        embedding_(nullptr, model_.shape(), 0),
        store_(*ReferenceStore::Open(folder_.File("store.db"))),
        shifts_(store_.get(), kModelDigest) {
    engine_.Stop(absl::ZeroDuration());
    std::vector<ReferenceRecord> records = MakeReferences("set", 0, 40);
    for (ReferenceRecord& record : records) record.embedder_digest = embedding_.digest();
    EXPECT_TRUE(store_->Add(records).ok());
    parts_.model = &model_;
    parts_.engine = &engine_;
    parts_.text = &text_;
    parts_.embedding = &embedding_;
    parts_.shifts = &shifts_;
    parts_.workers = &workers_;
    context_.rates = *limiter_->Admit("ann", {});
  }

  // The call ended with `status`, and the whole minute's worth is there.
  void ExpectGivenBack(const absl::Status& status) {
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    const auto other = *limiter_->Admit("ann", {});
    EXPECT_TRUE(other->Charge(kPerMinute).ok());
  }

  ScratchFolder folder_;
  const std::shared_ptr<const Tokenizer> tokenizer_;
  const PromptText text_;
  ShapeAlone model_;
  Engine engine_;
  const QueryEmbedding embedding_;
  const std::unique_ptr<ReferenceStore> store_;
  LearnedShifts shifts_;
  PipelineParts parts_;
  const absl::Time now_ = absl::UnixEpoch() + absl::Hours(1);
  const std::shared_ptr<RateLimiter> limiter_ = RateLimiter::Make({0, kPerMinute, 0}, nullptr, [this] { return now_; });
  CallContext context_;
  absl::Notification ended_;
  absl::Status status_;
  WorkerPool workers_{1, 8};  // Goes first: its jobs end the calls.
};

TEST_F(GivenBackTest, TuningThatTheEngineDoesNotTakeCostsNothing) {
  CollectionLearning learning(parts_, store_.get(), 2);
  TuneRequest request;
  request.context = context_;
  request.collection = "set";
  request.tuner.critical_layers = {2};
  const absl::Status begun = learning.TunePrior(
      std::move(request), [](const PriorTuner::Epoch&) {},
      [this](const absl::StatusOr<std::optional<CollectionPrior>>& prior) {
        status_ = prior.status();
        ended_.Notify();
      });
  ASSERT_TRUE(begun.ok()) << begun;
  ended_.WaitForNotification();
  ExpectGivenBack(status_);
}

TEST_F(GivenBackTest, AmortizingThatTheEngineDoesNotTakeCostsNothing) {
  CollectionLearning learning(parts_, store_.get(), 2);
  AmortizeRequest request;
  request.context = context_;
  request.settings.collection = "set";
  request.settings.rule = ApplicationRule::kRouterShift;
  request.settings.critical_layers = {2};
  request.settings.core_experts = 0;
  int64_t total = 0;
  const absl::Status begun = learning.Amortize(
      std::move(request), [&](const CollectionLearning::AmortizeProgress& progress) { total = progress.total; },
      [this](const absl::Status& status) {
        status_ = status;
        ended_.Notify();
      });
  ASSERT_TRUE(begun.ok()) << begun;
  ended_.WaitForNotification();
  EXPECT_EQ(total, 40);
  ExpectGivenBack(status_);
}

TEST_F(GivenBackTest, ATextThatTheEngineDoesNotTakeCostsNothing) {
  GenerationPipeline pipeline(parts_);
  const absl::Status begun =
      pipeline.Embed(context_, "What is one and one?", [this](const absl::StatusOr<std::vector<float>>& embedding) {
        status_ = embedding.status();
        ended_.Notify();
      });
  ASSERT_TRUE(begun.ok()) << begun;
  ended_.WaitForNotification();
  ExpectGivenBack(status_);
}

}  // namespace
}  // namespace c3po
