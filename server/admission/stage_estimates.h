#ifndef C3PO_SERVER_ADMISSION_STAGE_ESTIMATES_H_
#define C3PO_SERVER_ADMISSION_STAGE_ESTIMATES_H_

#include <algorithm>
#include <cstdint>
#include <optional>

#include "absl/time/time.h"

namespace c3po {

// What a request will ask of the server.
struct RequestWork {
  int prompt_tokens = 0;
  int output_tokens = 0;   // that it reserves room for
  int prepared_cases = 0;  // neighbors whose states an optimization needs
  int steps = 0;           // of the optimization
  bool retrieves = false;
  int positions = 1;        // of each neighbor, that a step moves
  double moving_share = 1;  // of the layers, those that a step goes through; (0, 1]

  // Through these layers: up, and down for twice as long; more where several descents look at the same held-out
  // neighbors; 0 where a step is arithmetic alone.
  double passes_per_step = 3;
  int trials = 0;  // passes up that are not a step's, such as those of a grid

  // Of the prepared cases, once these are known: their tokens, and the rows that a step moves. Before, a neighbor is
  // taken to be as long as the prompt, which it is like: cases * prompt_tokens, and cases * positions.
  std::optional<int64_t> case_tokens = std::nullopt, case_rows = std::nullopt;

  // All of it in tokens that go up through the model once: the unit of admission, and of rates (RateLimiter).
  //   prompt + output + case_tokens + (passes_per_step * steps + trials) * case_rows * moving_share
  int64_t Cost() const;
};

// What a request took, in seconds of the wall clock.
struct MeasuredStages {
  double retrieval_seconds = 0;     // tokenizing, embedding and searching
  double prefill_seconds = 0;       // from admission to the last prompt token
  double optimization_seconds = 0;  // from there to the routing; 0: none ran
  double decode_seconds = 0;        // from there to the end
};

// Moving averages of what stages took, each m <- m + (x - m) / 5 from its first measurement on:
//   seconds per prompt token; per unit of optimization, a unit being a prepared neighbor, a step or a trial (the engine
//   gives every optimizing request one unit a step); per decoded token; per retrieval; and of a whole request on the
//   engine. The first three are the mean of the seconds over the mean of the tokens or units. A mean of each request's
//   own ratio would give the pass of a one-token prompt the weight of a thousand tokens.
// Measured under whatever load there was, so what other requests cost is in them. They begin anew after a minute
// without a measurement: what was measured while the process was frozen must not refuse others for long. Not
// thread-safe.
class StageEstimates {
 public:
  // `done`: of what the request asked for, what it did.
  void Observe(const RequestWork& done, const MeasuredStages& stages, absl::Time now);
  // A request that was ended when it had taken `seconds` on the engine, which says no more than that it takes longer:
  // estimates below that grow.
  void ObserveAtLeast(const RequestWork& work, double seconds, absl::Time now);

  // False until the first measurement, and again when the last is older than a minute: what is refused measures
  // nothing, so old figures must not go on refusing.
  bool fresh(absl::Time now) const;

  // Retrieval, prefill, preparing neighbors and the first token; the steps not included.
  absl::Duration WithoutSteps(const RequestWork& work) const;
  // Of a step of up to 3 passes; of more, that many times longer.
  absl::Duration PerStep(const RequestWork& work) const { return absl::Seconds(unit_.each() * UnitsOfStep(work)); }
  // Of a request on the engine, from its first forward pass to its end.
  absl::Duration Service() const { return absl::Seconds(service_); }

 private:
  static double UnitsOfStep(const RequestWork& work) { return std::max(1.0, work.passes_per_step / 3); }

  // Seconds over an amount, both as moving averages; 0: unknown.
  struct Rate {
    double seconds = 0, amount = 0;
    void Blend(double measured_seconds, double measured_amount);
    double each() const { return amount > 0 ? seconds / amount : 0; }
  };

  Rate prompt_token_, unit_, token_;
  double retrieval_ = 0, service_ = 0;  // seconds; 0: unknown
  absl::Time measured_ = absl::InfinitePast();
};

}  // namespace c3po

#endif  // C3PO_SERVER_ADMISSION_STAGE_ESTIMATES_H_
