#include "index/base/number_text.h"

#include <cmath>
#include <cstdlib>
#include <limits>
#include <random>

#include "gtest/gtest.h"

namespace c3po {
namespace {

TEST(NumberText, IsAsShortAsTheNumberAllows) {
  EXPECT_EQ(NumberText(0.1), "0.1");
  EXPECT_EQ(NumberText(0.1F), "0.1");
  EXPECT_EQ(NumberText(1.0), "1");
  EXPECT_EQ(NumberText(1.0000001), "1.0000001");
  EXPECT_EQ(NumberText(-2.5), "-2.5");
  EXPECT_EQ(NumberText(1e-8), "1e-08");
  EXPECT_EQ(NumberText(std::nan("")), "nan");
  EXPECT_EQ(NumberText(std::numeric_limits<double>::infinity()), "inf");
}

TEST(NumberText, ReadsBackAsTheSameNumber) {
  std::mt19937_64 random(20);
  std::uniform_real_distribution<double> exponent(-300, 300), mantissa(-10, 10);
  for (int i = 0; i < 10000; ++i) {
    const double value = mantissa(random) * std::pow(10, exponent(random));
    EXPECT_EQ(std::strtod(NumberText(value).c_str(), nullptr), value);
    const auto single = static_cast<float>(mantissa(random));
    EXPECT_EQ(std::strtof(NumberText(single).c_str(), nullptr), single);
  }
  for (const double edge : {1.0, 2.0, 0.5}) {
    for (const double value : {std::nextafter(edge, 0), edge, std::nextafter(edge, 3)}) {
      EXPECT_EQ(std::strtod(NumberText(value).c_str(), nullptr), value);
    }
  }
}

}  // namespace
}  // namespace c3po
