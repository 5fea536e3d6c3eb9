#ifndef C3PO_TESTS_SERVER_MODEL_ROUNDED_ARITHMETIC_H_
#define C3PO_TESTS_SERVER_MODEL_ROUNDED_ARITHMETIC_H_

#include <optional>
#include <vector>

#include "server/compute/cpu/bfloat16_products.h"

namespace c3po {

// While it lives, products in bfloat16 are those of `unit`.
class ScopedBfloat16Unit {
 public:
  explicit ScopedBfloat16Unit(cpu::Bfloat16Unit unit) { cpu::SetBfloat16UnitForTest(unit); }
  ~ScopedBfloat16Unit() { cpu::SetBfloat16UnitForTest(std::nullopt); }
  ScopedBfloat16Unit(const ScopedBfloat16Unit&) = delete;
  ScopedBfloat16Unit& operator=(const ScopedBfloat16Unit&) = delete;
};

// Plain loops, and the unit that this processor has.
inline std::vector<cpu::Bfloat16Unit> Bfloat16UnitsHere() {
  std::vector<cpu::Bfloat16Unit> units = {cpu::Bfloat16Unit::kPlain};
  const cpu::Bfloat16Unit own = cpu::FastestBfloat16Unit();
  if (own != cpu::Bfloat16Unit::kNone && own != cpu::Bfloat16Unit::kPlain) units.push_back(own);
  return units;
}

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_MODEL_ROUNDED_ARITHMETIC_H_
