#ifndef C3PO_CLIENT_CLI_EXPERT_TALLY_H_
#define C3PO_CLIENT_CLI_EXPERT_TALLY_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "c3po/v1/generation.pb.h"
#include "client/cli/terminal.h"

namespace c3po {

// Which experts the tokens of a prompt and its answer were given.
class ExpertTally {
 public:
  // A piece; what it says beyond its own numbers is passed over, as a newer server's.
  void Add(const v1::RoutedExperts& routes);

  // A row for each MoE layer: its experts with the largest share of the tokens, and that share. Empty: nothing was
  // added.
  std::string Table(const Terminal& terminal) const;

 private:
  uint64_t tokens_ = 0;
  std::vector<std::map<uint32_t, uint64_t>> layers_;  // by expert: tokens that were given it
};

}  // namespace c3po

#endif  // C3PO_CLIENT_CLI_EXPERT_TALLY_H_
