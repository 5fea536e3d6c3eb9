#ifndef C3PO_SERVER_TYPES_ROUTED_EXPERTS_H_
#define C3PO_SERVER_TYPES_ROUTED_EXPERTS_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace c3po {

// The experts that consecutive tokens of a sequence were given in every MoE layer, and the mixing weights that were
// applied: [tokens, layers, experts], row by row, in each the largest weight first. A value.
struct RoutedExperts {
  int first_position = 0;  // of the first token, in prompt and answer together
  int layers = 0;
  int experts = 0;  // of a token and layer: the model's number, or the request's
  std::vector<int32_t> ids;
  std::vector<float> weights;

  static constexpr int64_t kPairBytes = sizeof(int32_t) + sizeof(float);

  bool empty() const { return ids.empty(); }
  size_t token_size() const { return static_cast<size_t>(layers) * static_cast<size_t>(experts); }
  int tokens() const { return empty() ? 0 : static_cast<int>(ids.size() / token_size()); }
  int end_position() const { return first_position + tokens(); }

  // Makes room for tokens up to `position`.
  void ResizeTo(int position) {
    const size_t size = static_cast<size_t>(position - first_position) * token_size();
    ids.resize(size);
    weights.resize(size);
  }

  // Replaces what the layers from `first_layer` on have of `other`'s tokens, which follow this one's or lie among them.
  void Put(const RoutedExperts& other, int first_layer) {
    if (other.empty()) return;
    if (empty()) {
      layers = other.layers;
      experts = other.experts;
      first_position = other.first_position;
    }
    if (other.end_position() > end_position()) ResizeTo(other.end_position());
    const size_t skipped = static_cast<size_t>(first_layer) * static_cast<size_t>(experts);
    for (int t = 0; t < other.tokens(); ++t) {
      const size_t from = static_cast<size_t>(t) * token_size() + skipped, count = token_size() - skipped;
      const size_t to = static_cast<size_t>(other.first_position - first_position + t) * token_size() + skipped;
      std::copy_n(other.ids.begin() + static_cast<std::ptrdiff_t>(from), count,
                  ids.begin() + static_cast<std::ptrdiff_t>(to));
      std::copy_n(other.weights.begin() + static_cast<std::ptrdiff_t>(from), count,
                  weights.begin() + static_cast<std::ptrdiff_t>(to));
    }
  }

  // Of `count` tokens from the one at `position` on.
  RoutedExperts Cut(int position, int count) const {
    RoutedExperts part{position, layers, experts, {}, {}};
    const auto begin = static_cast<std::ptrdiff_t>(static_cast<size_t>(position - first_position) * token_size());
    const auto size = static_cast<std::ptrdiff_t>(static_cast<size_t>(count) * token_size());
    part.ids.assign(ids.begin() + begin, ids.begin() + begin + size);
    part.weights.assign(weights.begin() + begin, weights.begin() + begin + size);
    return part;
  }
};

}  // namespace c3po

#endif  // C3PO_SERVER_TYPES_ROUTED_EXPERTS_H_
