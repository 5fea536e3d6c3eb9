#include <cstddef>
#include <cstdint>

#include "index/search/reference_catalog.h"

namespace c3po {

int64_t ReferenceCatalog::MemoryBytes() const {
  constexpr size_t kMaps = 700, kMetadataEntry = 96;
  const size_t vector = sizeof(float) * static_cast<size_t>(options_.embedding_dimension);
  size_t bytes = 0;
  ReaderLock lock(mutex_);
  for (const auto& [name, collection] : collections_) {
    for (const auto& [label, record] : collection.usable) {
      bytes += kMaps + vector + sizeof(float) * record->pathway.weights.size() + record->sample.prompt.size() +
               record->sample.answer.size();
      for (const std::string& choice : record->sample.choices) bytes += choice.size();
      for (const auto& [key, value] : record->sample.metadata) bytes += kMetadataEntry + key.size() + value.size();
    }
    bytes += static_cast<size_t>(collection.metadata.MemoryBytes());
    for (const auto& [layer, states] : collection.states) {
      for (const auto& index : states.indexes) bytes += static_cast<size_t>(index->MemoryBytes()) + 50 * index->size();
    }
    for (const View& view : collection.views) bytes += static_cast<size_t>(view.index->MemoryBytes());
  }
  return static_cast<int64_t>(bytes);
}

}  // namespace c3po
