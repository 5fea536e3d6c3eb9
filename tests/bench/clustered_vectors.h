#ifndef C3PO_TESTS_BENCH_CLUSTERED_VECTORS_H_
#define C3PO_TESTS_BENCH_CLUSTERED_VECTORS_H_

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

namespace c3po {

// Unit vectors that crowd as the embeddings of a reference collection do. Of `count` vectors there are sqrt(count)
// topics, each a random direction; a vector is
//   unit(topic + noise),   noise_i ~ N(0, v / (i + 1)),   E |noise|^2 = 1
// so that two of a topic have a cosine of about 0.5, two of different topics one of 0 +- 0.1, and a larger collection
// has both more topics and more vectors in each. Axes vary unequally, as those of embeddings do: of 384, the noise has
// about 26 dimensions (participation ratio of its variances). Uniform vectors would be no model of a collection: all
// their distances are alike, and which are nearest is chance. Deterministic by the seed, made one by one: a million of
// them need not be in memory twice.
class ClusteredVectors {
 public:
  // Two with one seed and count make vectors of the same topics; `stream` tells them apart (references, queries).
  ClusteredVectors(int dimension, int64_t count, uint32_t seed, uint32_t stream)
      : random_(seed), deviations_(dimension) {
    double sum = 0;
    for (int i = 0; i < dimension; ++i) sum += 1.0 / (i + 1);
    for (int i = 0; i < dimension; ++i) deviations_[i] = static_cast<float>(std::sqrt(1.0 / (i + 1) / sum));
    topics_.resize(static_cast<size_t>(std::sqrt(static_cast<double>(count))));
    for (std::vector<float>& topic : topics_) {
      topic.resize(dimension);
      for (float& value : topic) value = normal_(random_);
      Normalize(topic);
    }
    random_.seed(seed + 1 + stream);
  }

  std::vector<float> Next() {
    std::vector<float> vector = topics_[random_() % topics_.size()];
    for (size_t i = 0; i < vector.size(); ++i) vector[i] += deviations_[i] * normal_(random_);
    Normalize(vector);
    return vector;
  }

  int topics() const { return static_cast<int>(topics_.size()); }

 private:
  static void Normalize(std::vector<float>& vector) {
    double squares = 0;
    for (const float value : vector) squares += double{value} * value;
    for (float& value : vector) value = static_cast<float>(value / std::sqrt(squares));
  }

  std::mt19937 random_;
  std::normal_distribution<float> normal_;
  std::vector<float> deviations_;  // [dimension], of the noise.
  std::vector<std::vector<float>> topics_;
};

}  // namespace c3po

#endif  // C3PO_TESTS_BENCH_CLUSTERED_VECTORS_H_
