#ifndef C3PO_SERVER_PIPELINE_SEEDED_SHUFFLE_H_
#define C3PO_SERVER_PIPELINE_SEEDED_SHUFFLE_H_

#include <cstddef>
#include <random>
#include <utility>
#include <vector>

namespace c3po {

// Fisher and Yates. Unlike std::shuffle, the same order for a seed with every standard library.
template <typename T>
void SeededShuffle(std::mt19937_64& random, std::vector<T>& values) {
  for (size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[random() % i]);
}

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_SEEDED_SHUFFLE_H_
