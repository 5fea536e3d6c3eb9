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
  // The tree's rows entering F, and in layers F and above keys and values of the prompt before the tree.
  std::shared_ptr<ReferenceStates> states;

  TreeShape shape() const { return {tree.parents, tree.depths, prefix_length}; }
};

// Which states lie in the backend's pool, and which of them go when another needs the room: the least recently used
// that nobody holds. States in use stay, in the pool and here. Engine thread only, but for the states' holders, who may
// let go of them on any.
class NeighborCache {
 public:
  static std::string KeyOf(const NeighborCase& neighbor, const MovingPart& moving);
  // Null when absent.
  std::shared_ptr<const MoeNeighborState> Find(const std::string& key);
  // Of states outside of the pool, or of a key that is there already: nothing.
  void Insert(const std::string& key, std::shared_ptr<const MoeNeighborState> state);
  // Lets go of states that give back at least so many bytes; or of none, where there are not as many: false.
  bool Drop(int64_t bytes);

  int64_t bytes() const { return bytes_; }  // of the blocks of all that are here

 private:
  struct Entry {
    std::string key;
    std::shared_ptr<const MoeNeighborState> state;
  };
  int64_t bytes_ = 0;
  std::list<Entry> entries_;  // Most recently used first.
  std::map<std::string, std::list<Entry>::iterator> by_key_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_NEIGHBOR_CACHE_H_
