#ifndef C3PO_CLIENT_LOAD_LENGTH_DISTRIBUTION_H_
#define C3PO_CLIENT_LOAD_LENGTH_DISTRIBUTION_H_

#include <cstdint>
#include <random>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace c3po {

// Evenly in [0, 1), with 53 bits. Unlike the standard library's distributions the same on every platform.
double DrawUniform(std::mt19937_64& random);

// Lengths in tokens, at least 1, as a mixture of shapes:
//   128                      always 128
//   16-256                   evenly, both ends included
//   lognormal:64:0.8:1024    exp(N(ln 64, 0.8^2)), rounded, cut at 1 and 1024 (median, sigma, largest)
// Shapes stand side by side with commas, each with an optional weight (default 1): "32@0.9,1000-2000@0.1".
// Immutable and thread-safe.
class LengthDistribution {
 public:
  // InvalidArgument names the part that is wrong.
  static absl::StatusOr<LengthDistribution> Parse(absl::string_view text);
  // Always `length`, at least 1.
  static LengthDistribution Constant(uint32_t length);

  uint32_t Draw(std::mt19937_64& random) const;
  // The largest length that Draw can give.
  uint32_t max() const;

 private:
  struct Shape {
    double weight = 1;
    uint32_t low = 1, high = 1;
    double sigma = 0;  // > 0: log-normal with median `median`; else even.
    double median = 0;
  };
  static absl::StatusOr<Shape> ParseShape(absl::string_view text);

  std::vector<Shape> shapes_;
};

}  // namespace c3po

#endif  // C3PO_CLIENT_LOAD_LENGTH_DISTRIBUTION_H_
