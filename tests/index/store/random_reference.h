#ifndef C3PO_TESTS_INDEX_STORE_RANDOM_REFERENCE_H_
#define C3PO_TESTS_INDEX_STORE_RANDOM_REFERENCE_H_

#include <stdlib.h>

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "index/types/reference_id.h"
#include "index/types/reference_record.h"

namespace c3po {

inline constexpr char kModelDigest[] = "model-a";
inline constexpr char kEmbedderDigest[] = "embedder-a";

inline std::vector<float> RandomUnitVector(std::mt19937& random, int dimension) {
  std::normal_distribution<double> normal;
  std::vector<double> values(dimension);
  double squares = 0;
  for (double& value : values) {
    value = normal(random);
    squares += value * value;
  }
  std::vector<float> unit;
  for (double value : values) unit.push_back(static_cast<float>(value / std::sqrt(squares)));
  return unit;
}

inline std::vector<std::vector<float>> RandomUnitVectors(uint32_t seed, int count, int dimension) {
  std::mt19937 random(seed);
  std::vector<std::vector<float>> vectors;
  for (int i = 0; i < count; ++i) vectors.push_back(RandomUnitVector(random, dimension));
  return vectors;
}

inline Pathway RandomPathway(std::mt19937& random, int layers, int experts) {
  std::exponential_distribution<float> exponential;
  Pathway pathway(layers, experts);
  for (int layer = 0; layer < layers; ++layer) {
    float sum = 0;
    for (float& weight : pathway.Row(layer)) sum += weight = exponential(random);
    for (float& weight : pathway.Row(layer)) weight /= sum;
  }
  return pathway;
}

// A valid record, the same for the same arguments: embedding of 8 dimensions, pathway of 3 layers and 4 experts. Every
// third is not successful.
inline ReferenceRecord MakeReference(const std::string& collection, int number, int dimension = 8) {
  std::mt19937 random(static_cast<uint32_t>(number) * 2654435761u + 17u);
  ReferenceRecord record;
  record.collection = collection;
  record.sample.prompt = absl::StrCat("Question: what is ", number, " + 1?\nAnswer:");
  record.sample.answer = absl::StrCat(" ", number + 1);
  record.sample.choices = {absl::StrCat(" ", number), absl::StrCat(" ", number + 1)};
  record.sample.metadata = {{"source", "größe \"quoted\""}, {"line", absl::StrCat(number)}};
  record.id = ReferenceId(collection, record.sample);
  record.successful = number % 3 != 0;
  record.model_digest = kModelDigest;
  record.embedder_digest = kEmbedderDigest;
  record.embedding = RandomUnitVector(random, dimension);
  record.pathway = RandomPathway(random, 3, 4);
  record.created_unix_seconds = 1700000000 + number;
  return record;
}

inline std::vector<ReferenceRecord> MakeReferences(const std::string& collection, int begin, int end,
                                                   int dimension = 8) {
  std::vector<ReferenceRecord> records;
  for (int number = begin; number < end; ++number) records.push_back(MakeReference(collection, number, dimension));
  return records;
}

// A folder of its own, removed with everything in it at the end.
class ScratchFolder {
 public:
  ScratchFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "c3po-index-XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~ScratchFolder() { std::filesystem::remove_all(path_); }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  std::string File(const std::string& name) const { return (path_ / name).string(); }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

}  // namespace c3po

#endif  // C3PO_TESTS_INDEX_STORE_RANDOM_REFERENCE_H_
