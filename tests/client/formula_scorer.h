#ifndef C3PO_TESTS_CLIENT_FORMULA_SCORER_H_
#define C3PO_TESTS_CLIENT_FORMULA_SCORER_H_

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <initializer_list>
#include <set>
#include <utility>
#include <vector>

#include "client/eval/calibration.h"
#include "client/eval/option_setting.h"

namespace c3po {

using Options = v1::OptimizationOptions;

// Answers by a formula: `quality` in [0, 1] is the share of questions that are right, spread evenly over them.
class FormulaScorer : public CalibrationScorer {
 public:
  using Formula = std::function<absl::StatusOr<double>(const Options&)>;
  explicit FormulaScorer(Formula quality) : quality_(std::move(quality)) {}

  absl::StatusOr<std::vector<ItemResult>> Score(const Options& options, absl::Span<const size_t> questions) override {
    ++calls;
    now += absl::Seconds(static_cast<int64_t>(questions.size()));
    const absl::StatusOr<double> quality = quality_(options);
    if (!quality.ok()) return quality.status();
    for (const size_t question : questions) {
      if (fails_on.count(question) > 0) return absl::InternalError("the model's output is not finite");
    }
    std::vector<ItemResult> results;
    for (const size_t question : questions) {
      ItemResult result;
      // A golden-ratio sequence: any run of questions holds about the same share.
      const double draw = std::fmod(0.618033988749895 * static_cast<double>(question + 1), 1.0);
      result.correct = draw < *quality;
      result.seconds = options.method() == v1::METHOD_NONE ? 0.1 : 0.1 * (1 + options.steps());
      if (adorn) adorn(options, question, &result);
      asked.push_back(question);
      results.push_back(std::move(result));
    }
    return results;
  }

  std::function<void(const Options&, size_t, ItemResult*)> adorn;
  std::vector<size_t> asked;
  std::set<size_t> fails_on;
  int calls = 0;
  absl::Time now = absl::UnixEpoch();

 private:
  const Formula quality_;
};

inline CalibrationCandidate Patch(const char* label,
                                  std::initializer_list<std::pair<const char*, const char*>> fields) {
  CalibrationCandidate candidate{label, {}};
  for (const auto& [field, value] : fields) {
    EXPECT_TRUE(SetOption(field, value, &candidate.patch).ok()) << field;
  }
  return candidate;
}

inline CalibrationSettings Settings() {
  CalibrationSettings settings;
  for (size_t i = 0; i < 40; ++i) (i < 20 ? settings.questions : settings.check).push_back(i);
  settings.start.set_method(v1::METHOD_NEIGHBORHOOD_GRADIENT_DESCENT);
  settings.start.set_k(3);
  settings.start.set_steps(5);
  settings.axes = {{"k", false, {Patch("3", {{"k", "3"}}), Patch("6", {{"k", "6"}}), Patch("12", {{"k", "12"}})}},
                   {"steps", true, {Patch("10", {{"steps", "10"}}), Patch("20", {{"steps", "20"}})}}};
  return settings;
}

// Best at k = 12, steps = 10; the model as it is 40 %.
inline absl::StatusOr<double> Hill(const Options& options) {
  if (options.method() == v1::METHOD_NONE) return 0.4;
  return 0.8 - 0.02 * std::abs(static_cast<int>(options.k()) - 12) -
         0.02 * std::abs(static_cast<int>(options.steps()) - 10);
}

}  // namespace c3po

#endif  // C3PO_TESTS_CLIENT_FORMULA_SCORER_H_
