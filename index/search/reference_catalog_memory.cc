#include <cstddef>
#include <cstdint>

#include "index/search/reference_catalog.h"

namespace c3po {

int64_t ReferenceCatalog::MemoryBytes() const {
  constexpr size_t kMaps = 600, kGraphNode = 150;
  const size_t vector = sizeof(float) * static_cast<size_t>(options_.embedding_dimension);
  size_t bytes = 0;
  ReaderLock lock(mutex_);
  for (const auto& [name, collection] : collections_) {
    for (const auto& [label, record] : collection.usable) {
      bytes += kMaps + vector + sizeof(float) * record->pathway.weights.size() + record->sample.prompt.size() +
               record->sample.answer.size();
      for (const std::string& choice : record->sample.choices) bytes += choice.size();
    }
    for (const View& view : collection.views) {
      const bool graph = view.references > options_.exact_references_max;
      const size_t of_each = vector + (graph ? 8 * static_cast<size_t>(options_.hnsw.m) + kGraphNode : 0);
      bytes += of_each * static_cast<size_t>(view.references);
    }
  }
  return static_cast<int64_t>(bytes);
}

}  // namespace c3po
