#ifndef C3PO_INDEX_TYPES_REFERENCE_RECORD_H_
#define C3PO_INDEX_TYPES_REFERENCE_RECORD_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "index/types/pathway.h"

namespace c3po {

// A question with its known answer, as a user gives it. `choices` is empty, or holds at least two texts of which exactly one
// equals `answer`. The answer is a continuation: with the leading space that the prompt format wants.
struct ReferenceSample {
  std::string prompt;
  std::string answer;
  std::vector<std::string> choices;
  std::map<std::string, std::string> metadata;
  std::string id;  // The sample's own; empty: its reference's id is made of the rest.
};

// A sample after the model ran it.
struct ReferenceRecord {
  std::string id;          // ReferenceId(collection, sample); unique in a store.
  std::string collection;
  ReferenceSample sample;
  bool successful = false;          // The model answers it correctly by itself.
  std::string model_digest;         // The model that made `successful` and `pathway`.
  std::string embedder_digest;      // The embedder that made `embedding`.
  std::vector<float> embedding;     // Unit length.
  Pathway pathway;                  // All MoE layers, at the last prompt token.
  int64_t created_unix_seconds = 0;
};

}  // namespace c3po

#endif  // C3PO_INDEX_TYPES_REFERENCE_RECORD_H_
