// Who runs, who waits, and whose blocks they are: sequences without a model.

#include "server/scheduler/sequence_places.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "server/scheduler/sequence_blocks.h"

namespace c3po {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr int kBlock = KvBlockPool::kPositions;
using Stage = Sequence::Stage;

class SequencePlacesTest : public ::testing::Test {
 protected:
  SequencePlaces& places() {
    if (!places_) {
      places_ = std::make_unique<SequencePlaces>(
          limits_, nullptr, [this] { return now_; },
          [this](const Sequence& sequence) {
            EXPECT_THAT(sequence.blocks, IsEmpty());
            preempted_.push_back(names_.at(&sequence));
          });
    }
    return *places_;
  }

  // A prompt of so many tokens, which begin with `first`, so that prompts of one `first` share their blocks.
  Sequence* Wait(const std::string& id, const std::string& caller, int tokens, int first = 0) {
    auto sequence = std::make_unique<Sequence>();
    Sequence* const waits = sequence.get();
    names_[waits] = id;
    sequence->request.caller = caller;
    sequence->request.prompt.assign(static_cast<size_t>(tokens), first == 0 ? ++next_first_ : first);
    sequence->request.arrival = now_;
    sequence->request.sampling.max_tokens = 8;
    sequence->tokens = sequence->request.prompt;
    places().Wait(std::move(sequence));
    return waits;
  }
  std::vector<std::string> Ids(const auto& sequences) const {
    std::vector<std::string> ids;
    for (const auto& sequence : sequences) ids.push_back(names_.at(sequence.get()));
    return ids;
  }
  std::vector<std::string> Running() { return Ids(places().running()); }
  std::vector<std::string> Waiting() { return Ids(places().waiting()); }

  // All its prompt is in the cache.
  void Decode(Sequence* sequence) {
    ASSERT_TRUE(Reserve(*sequence, sequence->prompt_length(), places().pool()));
    sequence->cached = sequence->prompt_length();
    NameBlocks(*sequence, places().pool());
    sequence->stage = Stage::kDecode;
    sequence->tokens.push_back(1);
  }
  void End(Sequence* sequence) {
    GiveBack(*sequence, places().pool());
    sequence->stage = Stage::kEnded;
    places().RemoveEnded();
  }

  SequencePlaces::Limits limits_{3, 20};
  absl::Time now_ = absl::UnixEpoch() + absl::Seconds(100);
  std::vector<std::string> preempted_;

 private:
  std::map<const Sequence*, std::string> names_;
  std::unique_ptr<SequencePlaces> places_;
  int next_first_ = 100;
};

TEST_F(SequencePlacesTest, FitsWhatWouldRunAlone) {
  SequenceRequest request;
  request.prompt.assign(18 * kBlock, 1);
  request.sampling.max_tokens = 2 * kBlock;
  EXPECT_TRUE(places().Fits(request));
  request.sampling.max_tokens += 1;
  EXPECT_FALSE(places().Fits(request));
}

TEST_F(SequencePlacesTest, AdmitsTheFirstComeUpToItsPlacesAndTwoMoreForCallersThatHaveNone) {
  for (const char* id : {"a1", "a2", "a3", "a4"}) Wait(id, "ann", 5);
  places().Admit();
  EXPECT_THAT(Running(), ElementsAre("a1", "a2", "a3"));
  for (const char* caller : {"ben", "cleo", "dora"}) Wait(caller, caller, 5);
  places().Admit();
  EXPECT_THAT(Running(), ElementsAre("a1", "a2", "a3", "ben", "cleo"));
  EXPECT_THAT(Waiting(), ElementsAre("a4", "dora"));
}

TEST_F(SequencePlacesTest, APlaceThatIsFreeGoesToPriorityThenToTheCallerWithTheFewest) {
  limits_.running_max = 2;
  Sequence* const first = Wait("a1", "ann", 5);
  Wait("a2", "ann", 5);
  places().Admit();
  Wait("a3", "ann", 5);
  Wait("ben", "ben", 5)->request.priority = Priority::kLow;
  Wait("a4", "ann", 5)->request.priority = Priority::kHigh;
  End(first);
  places().Admit();
  EXPECT_THAT(Running(), ElementsAre("a2", "a4"));
}

TEST_F(SequencePlacesTest, StampsTheFirstAdmissionOnly) {
  Sequence* const one = Wait("one", "ann", 5);
  now_ += absl::Seconds(3);
  places().Admit();
  EXPECT_EQ(one->timings.before_batch_seconds, 3);
  const absl::Time admitted = one->admitted;
  one->stage = Stage::kDecode;
  one->tokens.assign(20 * kBlock + 5, 1);  // More than there are: it goes back.
  places().ReserveRows();
  EXPECT_THAT(preempted_, ElementsAre("one"));
  one->tokens.resize(20);
  now_ += absl::Seconds(3);
  places().Admit();
  EXPECT_THAT(Running(), ElementsAre("one"));
  EXPECT_EQ(one->admitted, admitted);
}

TEST_F(SequencePlacesTest, NobodyOvertakesWhatFindsNoBlocks) {
  Wait("large", "ann", 12 * kBlock);
  places().Admit();
  places().ReserveRows();
  Wait("larger", "ann", 12 * kBlock);
  Wait("small", "ann", 5);
  places().Admit();
  EXPECT_THAT(Running(), ElementsAre("large"));
  EXPECT_THAT(Waiting(), ElementsAre("larger", "small"));
}

TEST_F(SequencePlacesTest, BeginsWithTheBlocksThatAnotherLeftUnlessItNeedsAllStates) {
  Sequence* const left = Wait("left", "ann", 3 * kBlock + 4, 7);
  places().Admit();
  Decode(left);
  End(left);
  EXPECT_EQ(places().pool().held(), 0);
  Sequence* const again = Wait("again", "ann", 3 * kBlock + 9, 7);
  Sequence* const mean = Wait("mean", "ann", 3 * kBlock + 9, 7);
  mean->request.mean_layer = 1;
  places().Admit();
  EXPECT_EQ(again->cached, 3 * kBlock);
  EXPECT_EQ(again->blocks.size(), 3u);
  EXPECT_EQ(mean->cached, 0);
  EXPECT_EQ(places().prefix_hit_tokens(), 3 * kBlock);
}

TEST_F(SequencePlacesTest, WhatIsNotAdmittedHoldsNoBlocks) {
  Sequence* const left = Wait("left", "ann", 3 * kBlock + 4, 7);
  places().Admit();
  Decode(left);
  End(left);
  Wait("large", "ann", 15 * kBlock);
  places().Admit();
  places().ReserveRows();
  const int64_t held = places().pool().held();
  Sequence* const waits = Wait("waits", "ann", 9 * kBlock, 7);  // It shares three, and there are no six more.
  places().Admit();
  EXPECT_THAT(Waiting(), ElementsAre("waits"));
  EXPECT_THAT(waits->blocks, IsEmpty());
  EXPECT_EQ(places().pool().held(), held);
}

TEST_F(SequencePlacesTest, TheLastOnesGiveTheirBlocksBackAndStandInFrontInTheirOrder) {
  std::vector<Sequence*> all;
  for (const char* id : {"a", "b", "c"}) all.push_back(Wait(id, "ann", 5 * kBlock));
  Wait("d", "ann", 5);
  places().Admit();
  places().ReserveRows();
  for (Sequence* sequence : all) Decode(sequence);
  places().ReserveRows();  // 18 of 20.
  EXPECT_THAT(preempted_, IsEmpty());
  all[0]->tokens.resize(9 * kBlock, 1);  // It needs nine: three more.
  places().ReserveRows();
  EXPECT_THAT(preempted_, ElementsAre("c"));
  all[0]->tokens.resize(15 * kBlock, 1);
  places().ReserveRows();
  EXPECT_THAT(preempted_, ElementsAre("c", "b"));
  EXPECT_THAT(Running(), ElementsAre("a"));
  EXPECT_THAT(Waiting(), ElementsAre("b", "c", "d"));
  EXPECT_EQ(places().preemptions(), 2);
  EXPECT_EQ(all[2]->cached, 0);
  EXPECT_EQ(all[0]->blocks.size(), 15u);
}

TEST_F(SequencePlacesTest, WhatOptimizesWithoutBlocksStaysAndGoesOnFirstOnceItWasPreempted) {
  Sequence* const grows = Wait("grows", "ann", 9 * kBlock);
  Sequence* const optimizes = Wait("optimizes", "ann", 5 * kBlock);
  places().Admit();
  places().ReserveRows();
  Decode(grows);
  Decode(optimizes);
  optimizes->stage = Stage::kOptimizing;
  optimizes->work_granted = true;
  grows->tokens.resize(18 * kBlock, 1);
  places().ReserveRows();
  EXPECT_THAT(preempted_, ElementsAre("optimizes"));
  Wait("next", "ben", 4 * kBlock);
  places().Admit();
  EXPECT_THAT(Running(), ElementsAre("grows", "optimizes")) << "and there are no blocks for the next one";
  EXPECT_THAT(optimizes->blocks, IsEmpty());
  grows->tokens.resize(20 * kBlock, 1);
  places().ReserveRows();
  EXPECT_THAT(Running(), ElementsAre("grows", "optimizes")) << "it has nothing to give";
}

TEST_F(SequencePlacesTest, ACallerWithNoneGetsBlocksBackFromTheOneThatHoldsMoreThanItsPart) {
  for (const char* id : {"a1", "a2", "a3"}) Wait(id, "ann", 6 * kBlock - 3);
  places().Admit();
  places().ReserveRows();
  Wait("ben", "ben", 4 * kBlock);
  places().Admit();
  EXPECT_THAT(preempted_, ElementsAre("a3"));
  EXPECT_THAT(Running(), ElementsAre("a1", "a2", "ben"));
  EXPECT_THAT(Waiting(), ElementsAre("a3"));
}

TEST_F(SequencePlacesTest, ACallersOnlySequenceKeepsItsBlocksAndSoDoesLearning) {
  Wait("a1", "ann", 12 * kBlock);
  Sequence* const learning = Wait("learning", "ann", 6 * kBlock);
  learning->request.learning = true;
  places().Admit();
  places().ReserveRows();
  Wait("ben", "ben", 4 * kBlock);
  places().Admit();
  EXPECT_THAT(preempted_, IsEmpty());
  EXPECT_THAT(Waiting(), ElementsAre("ben"));
}

TEST_F(SequencePlacesTest, LearningTakesNoPlaceOfRequests) {
  limits_.running_max = 1;
  for (const char* id : {"l1", "l2", "l3", "l4"}) Wait(id, "ann", 2)->request.learning = true;
  Wait("request", "ann", 2);
  places().Admit();
  EXPECT_THAT(Running(), ElementsAre("l1", "l2", "l3", "l4", "request"));
}

// Whatever happens, each sequence is in one list, what waits holds no block, and every block held is somebody's.
TEST_F(SequencePlacesTest, NoSequenceAndNoBlockIsLostOverRandomSteps) {
  std::mt19937 random(20261129);
  std::vector<Sequence*> alive;
  int64_t preemptions = 0;
  for (int step = 0; step < 3000; ++step) {
    if (alive.size() < 12) {
      alive.push_back(Wait(std::to_string(step), std::string(1, static_cast<char>('a' + random() % 4)),
                           1 + static_cast<int>(random() % (6 * kBlock)), 1 + static_cast<int>(random() % 3)));
    }
    places().Admit();
    places().ReserveRows();
    for (const auto& sequence : places().running()) {
      Sequence& s = *sequence;
      if (s.stage == Stage::kPrefill) {
        s.cached = s.prompt_length();
        NameBlocks(s, places().pool());
        s.stage = Stage::kDecode;
      } else {
        s.cached = std::max(s.cached, static_cast<int>(s.tokens.size()) - 1);  // What was preempted catches up.
      }
      s.tokens.insert(s.tokens.end(), 1 + random() % 9, 1);
    }
    for (size_t i = 0; i < alive.size();) {
      const bool ends = static_cast<int64_t>(alive[i]->tokens.size()) > 12 * kBlock || random() % 40 == 0;
      if (ends) End(alive[i]);
      if (ends) alive.erase(alive.begin() + static_cast<std::ptrdiff_t>(i));
      if (!ends) ++i;
    }
    std::set<const Sequence*> found;
    std::set<int32_t> blocks;
    for (const auto& s : places().waiting()) {
      ASSERT_TRUE(found.insert(s.get()).second);
      ASSERT_THAT(s->blocks, IsEmpty());
    }
    for (const auto& s : places().running()) {
      ASSERT_TRUE(found.insert(s.get()).second);
      blocks.insert(s->blocks.begin(), s->blocks.end());
    }
    ASSERT_EQ(found, std::set<const Sequence*>(alive.begin(), alive.end()));
    ASSERT_EQ(places().pool().held(), static_cast<int64_t>(blocks.size()));
    preemptions = places().preemptions();
  }
  EXPECT_GT(preemptions, 20) << "nothing was ever short";
  while (!alive.empty()) {
    End(alive.back());
    alive.pop_back();
  }
  EXPECT_EQ(places().pool().held(), 0);
}

}  // namespace
}  // namespace c3po
