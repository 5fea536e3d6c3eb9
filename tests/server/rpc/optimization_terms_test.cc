// The rows of optimization_terms.h, the enums and options.proto say the same.

#include "index/types/optimization_terms.h"

#include <google/protobuf/descriptor.h>
#include <gtest/gtest.h>

#include <set>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "c3po/v1/options.pb.h"

namespace c3po {
namespace {

// Whether a number is a value of the enum. A value that is not listed does not compile (-Wswitch).
bool IsValue(Method value) {
  switch (value) {
    case Method::kNone:
    case Method::kModeFinding:
    case Method::kKernelRegression:
    case Method::kNeighborhoodGradientDescent:
    case Method::kAmortizedShift:
    case Method::kCollectionPrior:
    case Method::kOracle:
      return true;
  }
  return false;
}
bool IsValue(Kernel value) {
  switch (value) {
    case Kernel::kGaussian:
    case Kernel::kMatern:
    case Kernel::kLinear:
    case Kernel::kPolynomial:
      return true;
  }
  return false;
}
bool IsValue(ApplicationRule value) {
  switch (value) {
    case ApplicationRule::kLastPromptToken:
    case ApplicationRule::kEveryNewToken:
    case ApplicationRule::kRouterShift:
      return true;
  }
  return false;
}
bool IsValue(ReferenceSelection value) {
  switch (value) {
    case ReferenceSelection::kSuccessful:
    case ReferenceSelection::kAll:
      return true;
  }
  return false;
}
bool IsValue(SurrogateLoss value) {
  switch (value) {
    case SurrogateLoss::kAnswer:
    case SurrogateLoss::kChoices:
    case SurrogateLoss::kPairs:
      return true;
  }
  return false;
}
bool IsValue(NeighborSource value) {
  switch (value) {
    case NeighborSource::kEmbedding:
    case NeighborSource::kCriticalLayer:
    case NeighborSource::kLastLayer:
      return true;
  }
  return false;
}
bool IsValue(StepRule value) {
  switch (value) {
    case StepRule::kGradient:
    case StepRule::kNormalized:
    case StepRule::kAdam:
      return true;
  }
  return false;
}
bool IsValue(GateDecision value) {
  switch (value) {
    case GateDecision::kApplied:
    case GateDecision::kNotRequested:
    case GateDecision::kSkippedNoNeighbors:
    case GateDecision::kSkippedNeighborsFar:
    case GateDecision::kSkippedBaseConfident:
    case GateDecision::kRevertedLossNotReduced:
    case GateDecision::kRevertedValidationLossNotReduced:
    case GateDecision::kRevertedNotConfident:
      return true;
  }
  return false;
}

template <typename Value>
class OptimizationTerms : public testing::Test {};
using Choices = testing::Types<Method, Kernel, ApplicationRule, ReferenceSelection, SurrogateLoss, NeighborSource,
                               StepRule, GateDecision>;
TYPED_TEST_SUITE(OptimizationTerms, Choices);

TYPED_TEST(OptimizationTerms, EveryValueOfTheEnumHasExactlyOneRow) {
  const auto rows = TermsOf<TypeParam>();
  size_t values = 0;
  while (IsValue(static_cast<TypeParam>(values))) ++values;
  EXPECT_EQ(rows.size(), values);
  for (size_t value = 0; value < values; ++value) {
    size_t found = 0;
    for (const auto& row : rows) found += row.value == static_cast<TypeParam>(value);
    EXPECT_EQ(found, 1U) << "value " << value;
  }
}

TYPED_TEST(OptimizationTerms, TheRowsAreThoseOfTheProtocolsEnum) {
  const auto rows = TermsOf<TypeParam>();
  const std::string name = absl::StrCat("c3po.v1.", terms::Rows<TypeParam>::kEnum);
  v1::OptimizationOptions();  // So that the file is linked.
  const auto* proto = google::protobuf::DescriptorPool::generated_pool()->FindEnumTypeByName(name);
  ASSERT_NE(proto, nullptr) << name;
  ASSERT_EQ(static_cast<size_t>(proto->value_count()), rows.size() + 1);  // and _UNSPECIFIED
  const std::string zero = proto->value(0)->name();
  ASSERT_TRUE(absl::EndsWith(zero, "_UNSPECIFIED"));
  const absl::string_view prefix = absl::StripSuffix(zero, "UNSPECIFIED");
  for (int i = 1; i < proto->value_count(); ++i) {
    const auto* row = TermOfNumber<TypeParam>(proto->value(i)->number());
    ASSERT_NE(row, nullptr) << proto->value(i)->name();
    EXPECT_EQ(row->name, absl::AsciiStrToLower(absl::StripPrefix(proto->value(i)->name(), prefix)));
  }
}

TYPED_TEST(OptimizationTerms, WordsTellTheValuesApartAndLeadBackToThem) {
  std::set<std::string> names, flags;
  for (const auto& row : TermsOf<TypeParam>()) {
    EXPECT_TRUE(names.insert(row.name).second) << row.name;
    EXPECT_EQ(&TermOf(row.value), &row);
    EXPECT_EQ(TermOfNumber<TypeParam>(row.number), &row);
    if (*row.flag == '\0') continue;
    EXPECT_TRUE(flags.insert(row.flag).second) << row.flag;
    EXPECT_EQ(TermOfFlag<TypeParam>(row.flag), &row);
  }
  EXPECT_EQ(TermOfFlag<TypeParam>("magic"), nullptr);
  EXPECT_EQ(TermOfFlag<TypeParam>(""), nullptr);
  EXPECT_EQ(TermOfNumber<TypeParam>(0), nullptr);
}

}  // namespace
}  // namespace c3po
