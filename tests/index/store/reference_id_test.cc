#include "index/types/reference_id.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <set>
#include <string>

#include "index/base/sha256.h"
#include "index/types/reference_validation.h"
#include "tests/index/store/random_reference.h"

namespace c3po {
namespace {

using ::testing::StartsWith;

TEST(ReferenceId, IsTheDigestOfTheDocumentedBytes) {
  ReferenceSample sample;
  sample.prompt = "ab";
  sample.answer = " x";
  sample.choices = {" x", " yz"};
  const auto number = [](char n) { return std::string(1, n) + std::string(7, '\0'); };
  const std::string bytes =
      number(1) + "c" + number(2) + "ab" + number(2) + " x" + number(2) + number(2) + " x" + number(3) + " yz";
  EXPECT_EQ(ReferenceId("c", sample), Sha256::HexOf(bytes).substr(0, 32));
}

TEST(ReferenceId, DependsOnEveryTextButTheMetadata) {
  ReferenceSample sample = MakeReference("c", 1).sample;
  const std::string id = ReferenceId("c", sample);
  sample.metadata["more"] = "text";
  EXPECT_EQ(ReferenceId("c", sample), id);

  std::set<std::string> ids = {id, ReferenceId("d", sample)};
  ReferenceSample changed = sample;
  changed.prompt += " ";
  ids.insert(ReferenceId("c", changed));
  changed = sample;
  changed.answer += " ";
  ids.insert(ReferenceId("c", changed));
  changed = sample;
  std::swap(changed.choices[0], changed.choices[1]);
  ids.insert(ReferenceId("c", changed));
  changed = sample;
  changed.choices.clear();
  ids.insert(ReferenceId("c", changed));
  // The same bytes, cut elsewhere.
  changed = sample;
  changed.answer = changed.prompt.back() + changed.answer;
  changed.prompt.pop_back();
  ids.insert(ReferenceId("c", changed));
  EXPECT_EQ(ids.size(), 7u);
}

class InvalidSample : public ::testing::Test {
 protected:
  void ExpectError(const std::string& prefix) {
    const absl::Status status = ValidateSample(sample_);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), StartsWith(prefix));
  }
  ReferenceSample sample_ = MakeReference("c", 1).sample;
};

TEST_F(InvalidSample, ValidOnesPass) {
  EXPECT_TRUE(ValidateSample(sample_).ok());
  sample_.choices.clear();
  sample_.metadata.clear();
  EXPECT_TRUE(ValidateSample(sample_).ok());
}

TEST_F(InvalidSample, EmptyPrompt) {
  sample_.prompt.clear();
  ExpectError("prompt: must not be empty");
}

TEST_F(InvalidSample, EmptyAnswer) {
  sample_.answer.clear();
  ExpectError("answer: must not be empty");
}

TEST_F(InvalidSample, NotUtf8) {
  sample_.prompt = "caf\xe9";
  ExpectError("prompt: not valid UTF-8");
  sample_ = MakeReference("c", 1).sample;
  sample_.choices[0] = "\xff";
  ExpectError("choices[0]: not valid UTF-8");
  sample_ = MakeReference("c", 1).sample;
  sample_.metadata["key"] = "\xff";
  ExpectError("metadata[\"key\"]: not valid UTF-8");
}

TEST_F(InvalidSample, OneChoice) {
  sample_.choices = {sample_.answer};
  ExpectError("choices: has one entry");
}

TEST_F(InvalidSample, AnswerIsNoChoice) {
  sample_.answer = "2";  // The choice is " 2".
  ExpectError("answer: not among `choices`");
}

TEST_F(InvalidSample, RepeatedChoice) {
  sample_.choices = {" 1", sample_.answer, " 1"};
  ExpectError("choices[2]: same as choices[0]");
}

TEST_F(InvalidSample, TooLarge) {
  const SampleLimits limits;
  sample_.prompt = std::string(limits.prompt_bytes_max, 'x');
  EXPECT_TRUE(ValidateSample(sample_).ok());
  sample_.prompt += "x";
  ExpectError("prompt: 262145 bytes, at most 262144");
  sample_ = MakeReference("c", 1).sample;
  sample_.metadata["key"] = std::string(limits.metadata_bytes_max, 'x');
  ExpectError("metadata: ");
  sample_ = MakeReference("c", 1).sample;
  for (size_t i = 0; i < limits.choices_max; ++i) sample_.choices.push_back(absl::StrCat("choice ", i));
  ExpectError("choices: 258 entries, at most 256");
}

TEST(ValidateRecord, NamesTheFieldThatIsWrong) {
  const auto message = [](auto change) {
    ReferenceRecord record = MakeReference("c", 1);
    change(record);
    return std::string(ValidateRecord(record).message());
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(message([](ReferenceRecord&) {}), "");
  EXPECT_THAT(message([](ReferenceRecord& r) { r.collection = ""; }), StartsWith("collection: must not be empty"));
  EXPECT_THAT(message([](ReferenceRecord& r) { r.collection = "a\nb"; }), StartsWith("collection: holds a control"));
  EXPECT_THAT(message([](ReferenceRecord& r) { r.id[0] ^= 1; }), StartsWith("id: "));
  EXPECT_THAT(message([](ReferenceRecord& r) { r.model_digest = ""; }), StartsWith("model_digest: "));
  EXPECT_THAT(message([](ReferenceRecord& r) { r.embedder_digest = ""; }), StartsWith("embedder_digest: "));
  EXPECT_THAT(message([](ReferenceRecord& r) { r.embedding.clear(); }), StartsWith("embedding: "));
  EXPECT_THAT(message([=](ReferenceRecord& r) { r.embedding[3] = nan; }), StartsWith("embedding[3]: not finite"));
  EXPECT_THAT(message([](ReferenceRecord& r) { r.embedding[3] += 1; }), StartsWith("embedding: has length"));
  EXPECT_THAT(message([](ReferenceRecord& r) { r.pathway.weights.pop_back(); }), StartsWith("pathway: 11 weights"));
  EXPECT_THAT(message([=](ReferenceRecord& r) { r.pathway.weights[5] = nan; }), StartsWith("pathway[1]: "));
  EXPECT_THAT(message([](ReferenceRecord& r) { r.pathway.Row(2)[0] += 1; }), StartsWith("pathway[2]: sums to"));
  EXPECT_THAT(message([](ReferenceRecord& r) { r.pathway = Pathway(); }), StartsWith("pathway: needs"));
}

TEST(ReferenceId, OfASampleWithAnIdOfItsOwnIsThatInItsCollection) {
  ReferenceSample sample = MakeReference("c", 1).sample;
  EXPECT_EQ(OwnIdOf("c", ReferenceId("c", sample)), "");
  sample.id = "q.1";
  EXPECT_EQ(ReferenceId("c", sample), "c:q.1");
  EXPECT_EQ(OwnIdOf("c", "c:q.1"), "q.1");
  EXPECT_EQ(OwnIdOf("d", "c:q.1"), "");
  EXPECT_EQ(ReferenceId("a:b", sample), "a:b:q.1");
  EXPECT_EQ(OwnIdOf("a:b", "a:b:q.1"), "q.1");
}

// "a" and "a:b" are two collections: a sample of the one must not take the place of a sample of the other.
TEST_F(InvalidSample, OwnIdThatWouldNameASampleOfAnotherCollection) {
  ReferenceSample other = sample_;
  sample_.id = "b:c";
  other.id = "c";
  ASSERT_EQ(ReferenceId("a", sample_), ReferenceId("a:b", other));
  EXPECT_TRUE(ValidateSample(other).ok());
  ExpectError("id: may hold letters");
}

TEST_F(InvalidSample, OwnIdOfOtherCharactersOrTooLong) {
  sample_.id = "A-z.0_9-";
  EXPECT_TRUE(ValidateSample(sample_).ok());
  for (const char* wrong : {"a b", "a/b", "b:c", "gr\xc3\xb6\xc3\x9f", "a\n"}) {
    sample_.id = wrong;
    ExpectError("id: may hold letters");
  }
  sample_.id = std::string(65, 'a');
  ExpectError("id: 65 bytes, at most 64");
}

}  // namespace
}  // namespace c3po
