#include "server/compute/cuda/cuda_weights.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <stdexcept>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/compute/cpu/cpu_weights.h"
#include "server/compute/cpu/quantized_panels.h"
#include "server/compute/cpu/stored_groups.h"
#include "server/compute/cpu/thread_pool.h"
#include "server/compute/cuda/packed_matrix.h"
#include "server/weights/stored_elements.h"

namespace c3po::cuda {
namespace {

using Key = std::pair<WeightRole, int>;  // role, layer

// What lies on the device as float32, row by row: vectors, and what no tensor core multiplies.
bool IsPlain(WeightRole role) {
  return IsVector(role) || role == WeightRole::kRouter || role == WeightRole::kSharedGate;
}

// One role's matrix on the host, while its parts come in.
struct Filling {
  PackedLayout layout = PackedLayout::Plain(0, 0, 1);
  std::vector<std::byte> packed;
  std::vector<float> plain;
  int64_t columns = 0;
  int64_t missing = 0;                                // entries
  cpu::WeightLayout held = cpu::WeightLayout::kRows;  // kInt8 and kInt4: quantized so
};

// Puts the groups of rows [begin, end) of a stored weight, 16 at most, into its role's packed matrix: packed levels of
// its own format as they are, all else quantized. False where a weight cannot be held: levels of 8 bits are a sign and
// a magnitude here (layout.h), and -128, which no quantizer of ours writes, is not.
bool PackGroups(const ModelConfig& config, const StoredWeight& stored, int64_t begin, int64_t end,
                const PackedLayout& packed, void* to) {
  const auto layout = packed.bits() == 8 ? cpu::WeightLayout::kInt8 : cpu::WeightLayout::kInt4;
  const cpu::QuantizedCut cut =
      cpu::QuantizedCut::Of(packed.rows(), packed.columns(), packed.rows(), packed.matrix_columns());
  const int64_t first = cut.GroupOf(stored.use.column);
  bool held = true;
  const auto store = [&](int64_t group, const cpu::QuantizedGroups& groups) {
    const int64_t column = cut.GroupColumn(first + group), count = cut.ColumnsOf(first + group);
    for (int64_t r = begin; r < end; ++r) {
      int8_t levels[cpu::kGroupColumns];
      cpu::LevelsOf(layout, groups, r - begin, levels);
      held = held && std::find(levels, levels + count, int8_t{-128}) == levels + count;
      packed.PackGroup(stored.use.RowOf(r, config), column, levels, count, groups.scales[r - begin], to);
    }
  };
  return cpu::GroupsOf(layout, stored.matrix, begin, end, cut.column_unit, nullptr, store) && held;
}

class Packer {
 public:
  Packer(const ModelConfig& config, ElementType type, WeightFormat format, bool as_stored, DevicePool& memory,
         HostCopies& copies)
      : config_(config), type_(type), format_(format), as_stored_(as_stored), memory_(memory), copies_(copies) {}

  void Add(const StoredWeight& stored) {
    const WeightUse& use = stored.use;
    const Key key{use.role, use.layer};
    const auto [found, is_new] = filling_.try_emplace(key);
    Filling& whole = found->second;
    if (is_new) Begin(stored, whole);
    if (as_stored_ && IsQuantized(use.role)) cpu::CheckStoredAlike(stored, whole.held);
    if (IsPlain(use.role)) {
      CopyPlain(stored, whole);
    } else if (whole.layout.bits() != 16) {
      CopyQuantized(stored, whole);
    } else {
      CopyPacked(stored, whole);
    }
    whole.missing -= stored.matrix.rows * stored.matrix.columns;
    // A bias may be stored in part, its other rows are 0.
    if (whole.missing > 0 && use.role != WeightRole::kQkvBias) return;
    Send(key, whole);
    if (use.role != WeightRole::kQkvBias) filling_.erase(key);
  }

  CudaWeights Finish() {
    CudaWeights weights;
    weights.type = type_;
    weights.format = format_;
    weights.embedding = Packed(WeightRole::kEmbedding, 0);
    weights.final_norm = Plain(WeightRole::kFinalNorm, 0);
    weights.head = config_.tied_embeddings ? weights.embedding : Packed(WeightRole::kHead, 0);
    for (int l = 0; l < config_.layers; ++l) weights.layers.push_back(LayerOf(l));
    weights.bytes = bytes_;
    for (auto& [key, data] : sent_) weights.memory.push_back(std::move(data));
    copies_.Wait();
    return weights;
  }

 private:
  PackedLayout LayoutOf(WeightRole role, const MatrixShape& shape) const {
    const int planes = type_ == ElementType::kFloat32 ? 3 : 1;
    switch (role) {
      case WeightRole::kExpertsGateUp:
        return PackedLayout::GateUp(config_.experts, config_.intermediate_size, shape.columns, planes);
      case WeightRole::kSharedGateUp:
        return PackedLayout::GateUp(1, shape.rows / 2, shape.columns, planes);
      case WeightRole::kExpertsDown:
        return PackedLayout::SideBySide(shape.rows, config_.experts, config_.intermediate_size, planes);
      default:
        return PackedLayout::Plain(shape.rows, shape.columns, planes);
    }
  }

  bool IsQuantized(WeightRole role) const {
    return cpu::QuantizedLayout(role, format_, config_.tied_embeddings) != cpu::WeightLayout::kRows;
  }

  void Begin(const StoredWeight& stored, Filling& whole) const {
    const WeightUse& use = stored.use;
    const MatrixShape shape = ShapeOfRole(config_, use.role, use.layer);
    whole.columns = shape.columns;
    whole.missing = shape.rows * shape.columns;
    if (IsPlain(use.role)) {
      whole.plain.resize(static_cast<size_t>(whole.missing));
    } else {
      whole.layout = LayoutOf(use.role, shape);
      if (IsQuantized(use.role)) whole.held = cpu::LayoutToHold(config_, stored, format_, as_stored_);
      if (whole.held != cpu::WeightLayout::kRows) {
        whole.layout = whole.layout.WithBits(whole.held == cpu::WeightLayout::kInt8 ? 8 : 4);
      }
      whole.packed.resize(static_cast<size_t>(whole.layout.bytes()));
    }
  }

  void CopyPlain(const StoredWeight& stored, Filling& whole) const {
    const WeightUse& use = stored.use;
    const HostMatrix& matrix = stored.matrix;
    const bool round = type_ == ElementType::kBfloat16 && use.role != WeightRole::kQkvBias;
    for (int64_t r = 0; r < matrix.rows; ++r) {
      float* const to = whole.plain.data() + use.RowOf(r, config_) * whole.columns + use.column;
      RowToFloat32(matrix, r, to);
      for (int64_t c = 0; round && c < matrix.columns; ++c) to[c] = WidenBfloat16(RoundToBfloat16(to[c]));
    }
  }

  void CopyPacked(const StoredWeight& stored, Filling& whole) const {
    const WeightUse& use = stored.use;
    const HostMatrix& matrix = stored.matrix;
    constexpr int64_t kGrain = 1 << 14;
    cpu::ParallelFor(matrix.rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, matrix.columns)),
                     [&, &use = use, &matrix = matrix](int64_t begin, int64_t end) {
                       std::vector<float> wide(type_ == ElementType::kFloat32 ? matrix.columns : 0);
                       std::vector<uint16_t> halves(type_ == ElementType::kFloat32 ? 0 : matrix.columns);
                       for (int64_t r = begin; r < end; ++r) {
                         const int64_t to = use.RowOf(r, config_);
                         if (type_ == ElementType::kFloat32) {
                           RowToFloat32(matrix, r, wide.data());
                           whole.layout.PackRow(to, use.column, wide.data(), matrix.columns, whole.packed.data());
                         } else {
                           RowToBfloat16(matrix, r, halves.data());
                           whole.layout.PackRow(to, use.column, halves.data(), matrix.columns, whole.packed.data());
                         }
                       }
                     });
  }

  void CopyQuantized(const StoredWeight& stored, Filling& whole) const {
    constexpr int64_t kGrain = 1 << 16;
    const int64_t rows = stored.matrix.rows, panel = cpu::kPanelRows;
    std::atomic<bool> finite{true};
    cpu::ParallelFor((rows + panel - 1) / panel,
                     std::max<int64_t>(1, kGrain / (panel * std::max<int64_t>(1, stored.matrix.columns))),
                     [&](int64_t begin, int64_t end) {
                       for (int64_t i = begin; i < end; ++i) {
                         const int64_t until = std::min(rows, (i + 1) * panel);
                         if (!PackGroups(config_, stored, i * panel, until, whole.layout, whole.packed.data())) {
                           finite = false;
                         }
                       }
                     });
    if (finite) return;
    throw std::invalid_argument(
        absl::StrCat(stored.name.empty() ? "a tensor" : stored.name,
                     " has a weight that is not finite or too large, or a level of -128, which int",
                     whole.layout.bits(), " on a GPU cannot hold"));
  }

  void Send(const Key& key, const Filling& whole) {
    const bool plain = IsPlain(key.first);
    const auto bytes = static_cast<int64_t>(plain ? whole.plain.size() * sizeof(float) : whole.packed.size());
    std::shared_ptr<void>& data = sent_[key];
    if (data == nullptr) {
      data = memory_.Take(bytes);
      bytes_ += bytes;
    }
    copies_.Upload(plain ? static_cast<const void*>(whole.plain.data()) : whole.packed.data(), bytes, data.get());
    if (!plain) layouts_.insert_or_assign(key, whole.layout);
  }

  PackedWeights Packed(WeightRole role, int layer) const {
    const auto found = sent_.find(Key{role, layer});
    return found == sent_.end() ? PackedWeights() : layouts_.at(found->first).Weights(found->second.get());
  }
  const float* Plain(WeightRole role, int layer) const {
    const auto found = sent_.find(Key{role, layer});
    return found == sent_.end() ? nullptr : static_cast<const float*>(found->second.get());
  }

  CudaLayer LayerOf(int l) const {
    CudaLayer layer;
    layer.attention_norm = Plain(WeightRole::kAttentionNorm, l);
    layer.qkv = Packed(WeightRole::kQkv, l);
    layer.qkv_bias = Plain(WeightRole::kQkvBias, l);
    layer.q_norm = Plain(WeightRole::kQueryNorm, l);
    layer.k_norm = Plain(WeightRole::kKeyNorm, l);
    layer.output = Packed(WeightRole::kOutput, l);
    layer.output_bias = Plain(WeightRole::kOutputBias, l);
    layer.query_latent_norm = Plain(WeightRole::kQueryLatentNorm, l);
    layer.query_expand = Packed(WeightRole::kQueryExpand, l);
    layer.kv_latent_norm = Plain(WeightRole::kKeyValueLatentNorm, l);
    layer.kv_expand = Packed(WeightRole::kKeyValueExpand, l);
    layer.feed_forward_norm = Plain(WeightRole::kFeedForwardNorm, l);
    layer.router = Plain(WeightRole::kRouter, l);
    layer.gate_up = Packed(WeightRole::kExpertsGateUp, l);
    layer.down = Packed(WeightRole::kExpertsDown, l);
    layer.shared_gate_up = Packed(WeightRole::kSharedGateUp, l);
    layer.shared_down = Packed(WeightRole::kSharedDown, l);
    layer.shared_gate = Plain(WeightRole::kSharedGate, l);
    return layer;
  }

  const ModelConfig& config_;
  const ElementType type_;
  const WeightFormat format_;
  const bool as_stored_;
  DevicePool& memory_;
  HostCopies& copies_;
  std::map<Key, Filling> filling_;
  std::map<Key, std::shared_ptr<void>> sent_;
  std::map<Key, PackedLayout> layouts_;  // of those that are packed
  int64_t bytes_ = 0;
};

}  // namespace

CudaWeights PackWeights(const ModelConfig& config, const ModelWeights& weights, ElementType type, WeightFormat format,
                        bool as_stored, DevicePool& memory, HostCopies& copies, const LoadProgress& progress) {
  Packer packer(config, type, format, as_stored, memory, copies);
  PackEach(config, weights, progress, [&](const StoredWeight& stored) { packer.Add(stored); });
  return packer.Finish();
}

}  // namespace c3po::cuda
