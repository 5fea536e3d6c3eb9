#include "index/search/cuda/device_graph.h"

#include <algorithm>
#include <utility>

#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr int64_t kFirstNodes = 256;
constexpr int64_t kFirstLists = 128;

absl::Status Damaged(absl::string_view problem) { return absl::DataLossError(problem); }

}  // namespace

absl::Status DeviceGraph::Reserve(IndexChange& change, int64_t nodes) {
  const int64_t lists = upper_count_ + kLayersOfNode;
  if (nodes <= capacity_ && lists <= upper_capacity_) return absl::OkStatus();
  const int64_t capacity = nodes <= capacity_ ? capacity_ : std::max({kFirstNodes, 2 * capacity_, nodes});
  const int64_t upper_capacity =
      lists <= upper_capacity_ ? upper_capacity_ : std::max({kFirstLists, 2 * upper_capacity_, lists});
  auto grown = std::make_shared<Memory>();
  C3PO_ASSIGN_OR_RETURN(grown->links, device_->Allocate(capacity * 2 * m_ * 4));
  C3PO_ASSIGN_OR_RETURN(grown->upper_lists, device_->Allocate(capacity * 4));
  C3PO_ASSIGN_OR_RETURN(grown->upper_links, device_->Allocate(upper_capacity * m_ * 4));
  if (memory_ != nullptr) {
    change.Copy(grown->links.as<void>(), memory_->links.as<void>(), this->nodes() * 2 * m_ * 4);
    change.Copy(grown->upper_lists.as<void>(), memory_->upper_lists.as<void>(), this->nodes() * 4);
    change.Copy(grown->upper_links.as<void>(), memory_->upper_links.as<void>(), upper_count_ * m_ * 4);
  }
  memory_ = std::move(grown);
  capacity_ = capacity;
  upper_capacity_ = upper_capacity;
  return absl::OkStatus();
}

absl::Status DeviceGraph::Load(IndexChange& change, const HnswGraph& graph) {
  C3PO_RETURN_IF_ERROR(CheckHnswGraph(graph));
  if (graph.m != m_) return Damaged("the graph is of another m");
  int64_t lists = 0;
  for (const int32_t layer : graph.layers) lists += layer;
  upper_count_ = lists;  // So that room for all of them is made at once.
  absl::Status room = Reserve(change, static_cast<int64_t>(graph.labels.size()));
  upper_count_ = 0;
  C3PO_RETURN_IF_ERROR(room);
  size_t next = 0;
  for (uint32_t node = 0; node < graph.labels.size(); ++node) {
    WriteNode(change, graph.layers[node]);
    for (int32_t layer = 0; layer <= graph.layers[node]; ++layer) {
      const auto begin = graph.links.begin() + static_cast<std::ptrdiff_t>(next) + 1;
      const uint32_t count = graph.links[next];
      WriteList(change, {node, layer, std::vector<uint32_t>(begin, begin + count)});
      next += size_t{count} + 1;
    }
  }
  top_layer_ = graph.top_layer;
  entry_node_ = graph.entry_node;
  return absl::OkStatus();
}

absl::Status DeviceGraph::CheckAddition(const HnswAddition& addition) const {
  const auto count = static_cast<int64_t>(first_lists_.size()) + 1;
  const auto layer_of = [&](uint32_t node) { return node == addition.node ? addition.layer : layers_[node]; };
  if (int64_t{addition.node} + 1 != count) return Damaged("an added node is not the next one");
  if (addition.layer < 0 || addition.layer >= kLayersOfNode) return Damaged("an added node's layer is out of range");
  if (int64_t{addition.entry_node} >= count || layer_of(addition.entry_node) != addition.top_layer) {
    return Damaged("the entry node is not in the top layer");
  }
  for (const HnswLinks& list : addition.changed) {
    if (int64_t{list.node} >= count || list.layer < 0 || list.layer > layer_of(list.node)) {
      return Damaged("a changed list is of no node");
    }
    if (list.links.size() > static_cast<size_t>(list.layer == 0 ? 2 * m_ : m_)) return Damaged("too many links");
    for (const uint32_t link : list.links) {
      if (int64_t{link} >= count || link == list.node || layer_of(link) < list.layer)
        return Damaged("a link leads nowhere");
    }
  }
  return absl::OkStatus();
}

absl::Status DeviceGraph::Add(IndexChange& change, const HnswAddition& addition) {
  C3PO_RETURN_IF_ERROR(CheckAddition(addition));
  WriteNode(change, addition.layer);
  for (const HnswLinks& list : addition.changed) WriteList(change, list);
  top_layer_ = addition.top_layer;
  entry_node_ = addition.entry_node;
  return absl::OkStatus();
}

// The next one.
void DeviceGraph::WriteNode(IndexChange& change, int32_t layer) {
  const auto first = static_cast<uint32_t>(upper_count_);
  change.Write(memory_->upper_lists.as<uint32_t>() + first_lists_.size(), &first, 1);
  first_lists_.push_back(first);
  layers_.push_back(layer);
  upper_count_ += layer;
}

void DeviceGraph::WriteList(IndexChange& change, const HnswLinks& list) const {
  const int places = list.layer == 0 ? 2 * m_ : m_;
  std::vector<uint32_t> words = list.links;
  words.resize(static_cast<size_t>(places), cuda::kNoLink);
  uint32_t* const to = list.layer == 0 ? memory_->links.as<uint32_t>() + int64_t{list.node} * places
                                       : memory_->upper_links.as<uint32_t>() +
                                             (int64_t{first_lists_[list.node]} + list.layer - 1) * places;
  change.Write(to, words.data(), words.size());
}

void DeviceGraph::Describe(cuda::BeamArgs& args) const {
  args.node_count = static_cast<int>(nodes());
  args.links = memory_->links.as<uint32_t>();
  args.upper_lists = memory_->upper_lists.as<uint32_t>();
  args.upper_links = memory_->upper_links.as<uint32_t>();
  args.links_max = 2 * m_;
  args.entry_node = entry_node_;
  args.top_layer = top_layer_;
}

}  // namespace c3po
