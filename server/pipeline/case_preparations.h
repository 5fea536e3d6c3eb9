#ifndef C3PO_SERVER_PIPELINE_CASE_PREPARATIONS_H_
#define C3PO_SERVER_PIPELINE_CASE_PREPARATIONS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "index/base/status_macros.h"
#include "server/types/model_runner.h"

namespace c3po {

// The fixed states of a list of cases on their way, all begun at once, so that the model can make them together:
//   Begin ▶ Advance ... Advance, each of which appends the states that are whole, in the order of the cases
class CasePreparations {
 public:
  // There are some that are not whole yet.
  bool begun() const { return next_ < preparations_.size(); }
  const std::vector<std::unique_ptr<NeighborPreparation>>& all() const { return preparations_; }

  absl::Status Begin(ModelRunner& model, absl::Span<const NeighborCase> cases, const MovingPart& moving) {
    next_ = 0;
    C3PO_ASSIGN_OR_RETURN(preparations_, model.NewPreparations(cases, moving));
    return absl::OkStatus();
  }

  // Goes on by about `row_layers`: with the first that is not whole, and those behind it that cost nothing more.
  absl::Status Advance(int64_t row_layers, std::vector<std::shared_ptr<const NeighborState>>& states) {
    for (bool has_cost = false; begun(); ++next_) {
      NeighborPreparation& preparation = *preparations_[next_];
      // What a pass made for several is there; another pass is another part.
      const int64_t before = preparation.spent();
      C3PO_ASSIGN_OR_RETURN(const bool whole, preparation.Advance(has_cost ? 0 : row_layers));
      has_cost = has_cost || preparation.spent() > before;
      if (!whole) return absl::OkStatus();
      states.push_back(preparation.state());
    }
    preparations_.clear();  // They hold what they made.
    next_ = 0;
    return absl::OkStatus();
  }

 private:
  std::vector<std::unique_ptr<NeighborPreparation>> preparations_;
  size_t next_ = 0;
};

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_CASE_PREPARATIONS_H_
