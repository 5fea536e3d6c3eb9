#include "index/search/hnsw_file.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <unordered_set>

#include "absl/strings/str_cat.h"
#include "index/base/sha256.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are stored as the machine holds them");

constexpr char kMagic[] = "C3POHNSW";
constexpr uint32_t kVersion = 1;
constexpr int32_t kDimensionMax = 1 << 20;
constexpr int32_t kLayerMax = 63;  // A layer is reached with probability m^-layer; 63 never is.
constexpr int32_t kLinksMax = 4096;

struct Header {
  char magic[8];
  uint32_t version;
  uint32_t dimension;
  uint32_t m;
  uint32_t ef_construction;
  int64_t generation;
  int32_t top_layer;
  uint32_t entry_node;
  uint64_t nodes;
  uint64_t link_words;
  uint64_t payload_bytes;
  char reserved[40];
  char payload_digest[32];
  char header_digest[32];
};
static_assert(sizeof(Header) == 168 && std::is_trivially_copyable_v<Header>);
constexpr size_t kDigestedHeaderBytes = offsetof(Header, header_digest);
constexpr int64_t kNodeBytes = sizeof(int64_t) + sizeof(int32_t) + sizeof(uint8_t);  // Without its vector and links.

absl::Status Damaged(absl::string_view problem) { return absl::DataLossError(problem); }

template <typename T>
void Append(std::string& bytes, const std::vector<T>& values) {
  if (!values.empty()) bytes.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

// Moves `count` values from the front of `bytes`, which holds that many.
template <typename T>
std::vector<T> Take(absl::string_view& bytes, size_t count) {
  std::vector<T> values(count);
  if (count > 0) std::memcpy(values.data(), bytes.data(), count * sizeof(T));
  bytes.remove_prefix(count * sizeof(T));
  return values;
}

std::string DigestBytes(absl::string_view bytes) {
  Sha256 hash;
  hash.Update(bytes);
  return hash.Digest();
}

absl::Status CheckSizes(const HnswGraph& graph) {
  const size_t nodes = graph.labels.size();
  if (graph.dimension < 1 || graph.dimension > kDimensionMax) return Damaged("dimension out of range");
  if (graph.m < 2 || graph.m > kLinksMax) return Damaged("m out of range");
  if (graph.ef_construction < 1) return Damaged("ef_construction out of range");
  if (nodes >= UINT32_MAX) return Damaged("too many nodes");
  if (graph.removed.size() != nodes || graph.layers.size() != nodes ||
      graph.vectors.size() != nodes * static_cast<size_t>(graph.dimension)) {
    return Damaged("arrays of different lengths");
  }
  return absl::OkStatus();
}

absl::Status CheckNodes(const HnswGraph& graph) {
  const size_t nodes = graph.labels.size();
  std::unordered_set<int64_t> live;
  int32_t top = -1;
  for (size_t node = 0; node < nodes; ++node) {
    if (graph.layers[node] < 0 || graph.layers[node] > kLayerMax) return Damaged("a node's layer is out of range");
    if (graph.removed[node] > 1) return Damaged("a tombstone is neither 0 nor 1");
    if (graph.removed[node] == 0 && !live.insert(graph.labels[node]).second) return Damaged("a label occurs twice");
    top = std::max(top, graph.layers[node]);
  }
  if (top != graph.top_layer) return Damaged("the top layer is not that of the nodes");
  if (nodes > 0 && (graph.entry_node >= nodes || graph.layers[graph.entry_node] != top)) {
    return Damaged("the entry node is not in the top layer");
  }
  for (float value : graph.vectors) {
    if (!std::isfinite(value)) return Damaged("a vector is not finite");
  }
  return absl::OkStatus();
}

absl::Status CheckLinks(const HnswGraph& graph) {
  size_t next = 0;
  for (size_t node = 0; node < graph.labels.size(); ++node) {
    for (int32_t layer = 0; layer <= graph.layers[node]; ++layer) {
      if (next >= graph.links.size()) return Damaged("links end early");
      const uint32_t count = graph.links[next++];
      if (count > static_cast<uint32_t>(layer == 0 ? 2 * graph.m : graph.m)) return Damaged("too many links");
      if (graph.links.size() - next < count) return Damaged("links end early");
      for (uint32_t i = 0; i < count; ++i) {
        const uint32_t other = graph.links[next++];
        if (other >= graph.labels.size() || other == node) return Damaged("a link leads nowhere");
        if (graph.layers[other] < layer) return Damaged("a link leads to a node below its layer");
      }
    }
  }
  return next == graph.links.size() ? absl::OkStatus() : Damaged("links beyond the last node");
}

}  // namespace

absl::Status CheckHnswGraph(const HnswGraph& graph) {
  C3PO_RETURN_IF_ERROR(CheckSizes(graph));
  C3PO_RETURN_IF_ERROR(CheckNodes(graph));
  return CheckLinks(graph);
}

std::string EncodeHnswGraph(const HnswGraph& graph) {
  std::string payload;
  payload.reserve(graph.labels.size() * 13 + graph.vectors.size() * 4 + graph.links.size() * 4);
  Append(payload, graph.labels);
  Append(payload, graph.vectors);
  Append(payload, graph.links);
  Append(payload, graph.layers);
  Append(payload, graph.removed);

  Header header = {};
  std::memcpy(header.magic, kMagic, sizeof(header.magic));
  header.version = kVersion;
  header.dimension = static_cast<uint32_t>(graph.dimension);
  header.m = static_cast<uint32_t>(graph.m);
  header.ef_construction = static_cast<uint32_t>(graph.ef_construction);
  header.generation = graph.generation;
  header.top_layer = graph.top_layer;
  header.entry_node = graph.entry_node;
  header.nodes = graph.labels.size();
  header.link_words = graph.links.size();
  header.payload_bytes = payload.size();
  std::memcpy(header.payload_digest, DigestBytes(payload).data(), sizeof(header.payload_digest));
  std::string bytes(reinterpret_cast<const char*>(&header), kDigestedHeaderBytes);
  bytes += DigestBytes(bytes);
  bytes += payload;
  return bytes;
}

int64_t HnswFileBytesMax(int64_t nodes, int dimension, int m) {
  const int64_t link_words = 1 + 2 * int64_t{m} + 4 * (1 + int64_t{m});
  const int64_t node_bytes = kNodeBytes + int64_t{sizeof(float)} * (dimension + link_words);
  constexpr int64_t kSlack = int64_t{1} << 20;
  if (nodes > (std::numeric_limits<int64_t>::max() - kSlack) / node_bytes) return std::numeric_limits<int64_t>::max();
  return kSlack + nodes * node_bytes;
}

absl::StatusOr<HnswGraph> DecodeHnswGraph(absl::string_view bytes) {
  if (bytes.size() < sizeof(Header)) return Damaged("shorter than a header");
  Header header;
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (std::memcmp(header.magic, kMagic, sizeof(header.magic)) != 0) return Damaged("not a graph file");
  if (DigestBytes(bytes.substr(0, kDigestedHeaderBytes)) !=
      absl::string_view(header.header_digest, sizeof(header.header_digest))) {
    return Damaged("the header does not match its digest");
  }
  if (header.version != kVersion) {
    return absl::FailedPreconditionError(absl::StrCat("version ", header.version, ", this build reads ", kVersion));
  }
  absl::string_view payload = bytes.substr(sizeof(Header));
  if (payload.size() != header.payload_bytes) return Damaged("the file is cut or has bytes to spare");
  if (DigestBytes(payload) != absl::string_view(header.payload_digest, sizeof(header.payload_digest))) {
    return Damaged("the payload does not match its digest");
  }
  // Bounds first, so that the products below cannot overflow and nothing larger than the file is allocated.
  if (header.dimension < 1 || header.dimension > static_cast<uint32_t>(kDimensionMax) ||
      header.m > static_cast<uint32_t>(kLinksMax) || header.ef_construction > INT32_MAX ||
      header.nodes > payload.size() || header.link_words > payload.size()) {
    return Damaged("the header is out of range");
  }
  const uint64_t node_bytes = kNodeBytes + sizeof(float) * header.dimension;
  if (header.nodes > payload.size() / node_bytes ||
      header.nodes * node_bytes + header.link_words * sizeof(uint32_t) != payload.size()) {
    return Damaged("the payload does not have the header's sizes");
  }
  HnswGraph graph;
  graph.dimension = static_cast<int32_t>(header.dimension);
  graph.m = static_cast<int32_t>(header.m);
  graph.ef_construction = static_cast<int32_t>(header.ef_construction);
  graph.generation = header.generation;
  graph.top_layer = header.top_layer;
  graph.entry_node = header.entry_node;
  graph.labels = Take<int64_t>(payload, header.nodes);
  graph.vectors = Take<float>(payload, header.nodes * header.dimension);
  graph.links = Take<uint32_t>(payload, header.link_words);
  graph.layers = Take<int32_t>(payload, header.nodes);
  graph.removed = Take<uint8_t>(payload, header.nodes);
  C3PO_RETURN_IF_ERROR(CheckHnswGraph(graph));
  return graph;
}

}  // namespace c3po
