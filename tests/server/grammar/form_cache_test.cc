#include "server/grammar/form_cache.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

namespace c3po {
namespace {

class SizedForm final : public CompiledForm {
 public:
  explicit SizedForm(int64_t bytes) : bytes_(bytes) {}
  std::unique_ptr<TokenMatcher> NewMatcher(bool) const override { return nullptr; }
  int64_t bytes() const override { return bytes_; }

 private:
  const int64_t bytes_;
};

FormCache::Result Sized(int64_t bytes) { return std::make_shared<SizedForm>(bytes); }

TEST(FormCache, TheLeastRecentlyUsedEntryGoes) {
  FormCache cache(2, 1000);
  cache.Keep("a", Sized(10));
  cache.Keep("b", Sized(10));
  ASSERT_NE(cache.Find("a"), nullptr);
  cache.Keep("c", Sized(10));
  EXPECT_NE(cache.Find("a"), nullptr);
  EXPECT_EQ(cache.Find("b"), nullptr);
  EXPECT_NE(cache.Find("c"), nullptr);
  EXPECT_EQ(cache.entries(), 2u);
  EXPECT_EQ(cache.bytes(), 24);
}

TEST(FormCache, HoldsNoMoreBytesThanItMay) {
  FormCache cache(100, 1000);
  for (int i = 0; i < 50; ++i) {
    cache.Keep("form " + std::to_string(i), Sized(200));
    EXPECT_LE(cache.bytes(), 1000);
  }
  EXPECT_EQ(cache.entries(), 4u);
  EXPECT_NE(cache.Find("form 49"), nullptr);
  cache.Keep("large", Sized(2000));
  EXPECT_EQ(cache.Find("large"), nullptr);
  EXPECT_EQ(cache.entries(), 4u);  // It pushed nobody out.
}

TEST(FormCache, ARefusalIsKeptToo) {
  FormCache cache(100, 1000);
  cache.Keep("bad", absl::InvalidArgumentError("no"));
  ASSERT_NE(cache.Find("bad"), nullptr);
  EXPECT_EQ(cache.Find("bad")->status().message(), "no");
  EXPECT_GT(cache.bytes(), 0);
}

}  // namespace
}  // namespace c3po
