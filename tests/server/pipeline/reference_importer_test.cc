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
#include "tests/index/store/random_reference.h"
#include "tests/server/partial_model.h"
#include "tests/server/text/golden_case.h"

namespace c3po {
namespace {

using ::testing::HasSubstr;

// Gives no numbers, but for the fault that is set; equal numbers if `answers`.
class FaultyModel final : public PartialModel {
 public:
  explicit FaultyModel(int vocabulary) {
    shape_.digest = kModelDigest;
    shape_.vocabulary_size = vocabulary;
    shape_.layers = shape_.moe_layers = 3;
    shape_.experts = 4;
    shape_.hidden_size = 8;
    shape_.context_window = 4096;
  }
  absl::StatusOr<std::vector<SegmentOutput>> Forward(absl::Span<const Segment> segments) override {
    if (broken.load()) return absl::InternalError("the device is gone");
    std::vector<SegmentOutput> outputs(segments.size());
    for (SegmentOutput& output : outputs) {
      output.logits.assign(static_cast<size_t>(shape_.vocabulary_size), std::nanf(""));
      output.hidden_sum.assign(8, 1);
    }
    for (size_t i = 0; answers && i < segments.size(); ++i) {
      outputs[i].logits.assign(outputs[i].logits.size(), 0);
      outputs[i].target_logprobs.assign(segments[i].targets.size(), -1);
      outputs[i].capture.pathway.layers = 3;
      outputs[i].capture.pathway.experts = 4;
      outputs[i].capture.pathway.weights.assign(12, 0.25f);
    }
    return outputs;
  }
  std::atomic<bool> broken{false};
  bool answers = false;
};

// Each text's row is its length's, but for one that has none.
class CountingEmbedder final : public Embedder {
 public:
  absl::StatusOr<std::vector<std::vector<float>>> Embed(absl::Span<const std::string> texts) override {
    sizes.push_back(texts.size());
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
  std::vector<size_t> sizes;  // of the calls
};

class ReferenceImportTest : public testing::Test {
 protected:
  ReferenceImportTest()
      : tokenizer_(*Tokenizer::Load(GoldenPath("byte_level.json"))),
        text_(tokenizer_, absl::FailedPreconditionError("no chat"), 4096, tokenizer_->vocabulary_size()),
        model_(tokenizer_->vocabulary_size()),
        engine_(&model_, BatcherLimits(), 64, nullptr),
        embedding_(nullptr, model_.shape(), 0),
        store_(*ReferenceStore::Open(folder_.File("store.db"))),
        shifts_(store_.get(), kModelDigest) {
    OpenCatalog(embedding_.digest());
    parts_.model = &model_;
    parts_.engine = &engine_;
    parts_.text = &text_;
    parts_.embedding = &embedding_;
    parts_.shifts = &shifts_;
  }

  void OpenCatalog(const std::string& embedder_digest) {
    CatalogOptions options;
    options.model_digest = kModelDigest;
    options.embedder_digest = embedder_digest;
    options.embedding_dimension = 8;
    options.moe_layers = 3;
    options.experts = 4;
    catalog_ = *ReferenceCatalog::Open(store_.get(), options);
    parts_.catalog = catalog_.get();
  }
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
    ImportSettings settings;
    settings.collection = "set";
    return ReferenceImport::Start(parts_, settings, &pool_, nullptr, std::move(events));
  }
  static ReferenceSample SampleOf(int number) {
    ReferenceSample sample;
    sample.prompt = absl::StrCat("What is ", number, "?");
    sample.answer = " 1";
    return sample;
  }

  ScratchFolder folder_;
  const std::shared_ptr<const Tokenizer> tokenizer_;
  const PromptText text_;
  FaultyModel model_;
  Engine engine_;
  const QueryEmbedding embedding_;
  const std::unique_ptr<ReferenceStore> store_;
  LearnedShifts shifts_;
  std::unique_ptr<ReferenceCatalog> catalog_;
  PipelineParts parts_;
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
  EncodedImportTest() {
    model_.answers = true;
    OpenCatalog(encoded_.digest());
    parts_.embedding = &encoded_;
  }

  void ImportAtOnce(const std::vector<ReferenceSample>& samples) {
    absl::Notification go;
    HoldWorker(go);
    const auto import = Start();
    for (size_t i = 0; i < samples.size(); ++i) import->Push(i, samples[i]);
    import->Close();
    go.Notify();
    ended_.WaitForNotification();
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

}  // namespace
}  // namespace c3po
