#ifndef C3PO_TESTS_SERVER_SIXTEEN_LANES_HWY_TARGETS_H_
#define C3PO_TESTS_SERVER_SIXTEEN_LANES_HWY_TARGETS_H_

// In place of Highway's: what tests ask about instruction sets, of which there is one.

#include <cstdint>
#include <vector>

namespace hwy {

inline std::vector<int64_t> SupportedAndGeneratedTargets() { return {1}; }
inline const char* TargetName(int64_t) { return "SixteenLanes"; }
inline void SetSupportedTargetsForTest(int64_t) {}

struct ChosenTarget {
  void DeInit() {}
};
inline ChosenTarget& GetChosenTarget() {
  static ChosenTarget chosen;
  return chosen;
}

}  // namespace hwy

#endif  // C3PO_TESTS_SERVER_SIXTEEN_LANES_HWY_TARGETS_H_
