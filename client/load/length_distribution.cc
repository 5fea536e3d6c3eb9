#include "client/load/length_distribution.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr uint32_t kLengthMax = 1 << 24;  // Beyond every context window; keeps sums of two in range.

absl::StatusOr<uint32_t> ParseLength(absl::string_view text, absl::string_view part) {
  uint32_t length = 0;
  if (!absl::SimpleAtoi(text, &length) || length < 1 || length > kLengthMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("lengths: \"", text, "\" in \"", part, "\" is not a length of at least 1"));
  }
  return length;
}

absl::StatusOr<double> ParsePositive(absl::string_view text, absl::string_view part) {
  double value = 0;
  if (!absl::SimpleAtod(text, &value) || !(value > 0) || !std::isfinite(value)) {
    return absl::InvalidArgumentError(
        absl::StrCat("lengths: \"", text, "\" in \"", part, "\" is not a number above 0"));
  }
  return value;
}

}  // namespace

double DrawUniform(std::mt19937_64& random) { return static_cast<double>(random() >> 11) * 0x1p-53; }

absl::StatusOr<LengthDistribution::Shape> LengthDistribution::ParseShape(absl::string_view text) {
  Shape shape;
  const std::vector<absl::string_view> weighted = absl::StrSplit(text, '@');
  if (weighted.size() > 2) return absl::InvalidArgumentError(absl::StrCat("lengths: two weights in \"", text, "\""));
  if (weighted.size() == 2) {
    C3PO_ASSIGN_OR_RETURN(shape.weight, ParsePositive(weighted[1], text));
  }
  absl::string_view body = weighted[0];
  if (absl::ConsumePrefix(&body, "lognormal:")) {
    const std::vector<absl::string_view> fields = absl::StrSplit(body, ':');
    if (fields.size() != 3) {
      return absl::InvalidArgumentError(absl::StrCat("lengths: \"", text, "\" is not lognormal:MEDIAN:SIGMA:LARGEST"));
    }
    C3PO_ASSIGN_OR_RETURN(shape.median, ParsePositive(fields[0], text));
    C3PO_ASSIGN_OR_RETURN(shape.sigma, ParsePositive(fields[1], text));
    C3PO_ASSIGN_OR_RETURN(shape.high, ParseLength(fields[2], text));
    return shape;
  }
  const std::vector<absl::string_view> ends = absl::StrSplit(body, '-');
  if (ends.size() > 2) return absl::InvalidArgumentError(absl::StrCat("lengths: \"", text, "\" is not FROM-TO"));
  C3PO_ASSIGN_OR_RETURN(shape.low, ParseLength(ends.front(), text));
  C3PO_ASSIGN_OR_RETURN(shape.high, ParseLength(ends.back(), text));
  if (shape.low > shape.high) return absl::InvalidArgumentError(absl::StrCat("lengths: \"", text, "\" runs backwards"));
  return shape;
}

absl::StatusOr<LengthDistribution> LengthDistribution::Parse(absl::string_view text) {
  LengthDistribution distribution;
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    C3PO_ASSIGN_OR_RETURN(Shape shape, ParseShape(part));
    distribution.shapes_.push_back(std::move(shape));
  }
  return distribution;
}

LengthDistribution LengthDistribution::Constant(uint32_t length) {
  LengthDistribution distribution;
  distribution.shapes_.emplace_back();
  distribution.shapes_.back().low = distribution.shapes_.back().high = length;
  return distribution;
}

uint32_t LengthDistribution::Draw(std::mt19937_64& random) const {
  double total = 0;
  for (const Shape& shape : shapes_) total += shape.weight;
  double left = DrawUniform(random) * total;
  const Shape* chosen = &shapes_.back();  // Where rounding leaves a rest.
  for (const Shape& shape : shapes_) {
    left -= shape.weight;
    if (left < 0) {
      chosen = &shape;
      break;
    }
  }
  const double first = DrawUniform(random);
  if (chosen->sigma == 0) {
    return chosen->low + static_cast<uint32_t>(first * static_cast<double>(chosen->high - chosen->low + 1));
  }
  // Box and Muller (1958); 1 - first is in (0, 1].
  const double normal = std::sqrt(-2 * std::log(1 - first)) * std::cos(2 * M_PI * DrawUniform(random));
  const double length = std::round(chosen->median * std::exp(chosen->sigma * normal));
  return static_cast<uint32_t>(std::clamp(length, 1.0, static_cast<double>(chosen->high)));
}

uint32_t LengthDistribution::max() const {
  uint32_t largest = 0;
  for (const Shape& shape : shapes_) largest = std::max(largest, shape.high);
  return largest;
}

}  // namespace c3po
