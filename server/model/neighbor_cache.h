#ifndef C3PO_SERVER_MODEL_NEIGHBOR_CACHE_H_
#define C3PO_SERVER_MODEL_NEIGHBOR_CACHE_H_

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "server/compute/backend.h"
#include "server/model/answer_tree.h"
#include "server/types/neighborhood_objective.h"

namespace c3po {

// What METHOD calls exact caches: nothing here depends on the pathway, since attention is causal and layers below the
// first critical one are not overridden.
struct MoeNeighborState final : public NeighborState {
  int first_layer = 0;    // MoE layer; "entering" it is entering its decoder layer F
  int prefix_length = 0;  // n: prompt tokens before the tree's
  AnswerTree tree;
  OwnedMatrix entry_hidden;              // [tree.rows(), d], entering F
  std::shared_ptr<PromptStates> prompt;  // in layers F and above: keys and values of the prompt before the tree

  TreeShape shape() const { return {tree.parents, tree.depths, prefix_length}; }
  int64_t bytes() const { return entry_hidden.view().bytes() + prompt->bytes() + 1024; }
};

// Least-recently-used cache of neighbor states under a byte budget. States in use outlive their eviction (shared
// ownership). Engine thread only.
class NeighborCache {
 public:
  explicit NeighborCache(int64_t bytes_max) : bytes_max_(bytes_max) {}

  static std::string KeyOf(const NeighborCase& neighbor, const MovingPart& moving);
  // Null when absent.
  std::shared_ptr<const MoeNeighborState> Find(const std::string& key);
  void Insert(const std::string& key, std::shared_ptr<const MoeNeighborState> state);

  int64_t bytes() const { return bytes_; }

 private:
  struct Entry {
    std::string key;
    std::shared_ptr<const MoeNeighborState> state;
  };
  const int64_t bytes_max_;
  int64_t bytes_ = 0;
  std::list<Entry> entries_;  // Most recently used first.
  std::map<std::string, std::list<Entry>::iterator> by_key_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_NEIGHBOR_CACHE_H_
