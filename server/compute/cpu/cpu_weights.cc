#include "server/compute/cpu/cpu_weights.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <new>
#include <stdexcept>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/compute/cpu/activation_squares.h"
#include "server/compute/cpu/stored_groups.h"
#include "server/compute/cpu/thread_pool.h"
#include "server/weights/stored_elements.h"

namespace c3po::cpu {
namespace {

// Asks for large pages below a large matrix, before it is written: decoding reads all weights for every token, and in
// pages of 4 KB finding them takes a tenth of it. What the system cannot do stays as it was.
void UseHugePages(void* data, int64_t bytes) {
  constexpr uintptr_t kHugePage = 2 << 20;
  const auto begin = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (begin + static_cast<uintptr_t>(bytes)) / kHugePage * kHugePage;
  if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
}

// Not AllocateBytes: weights are no rows of a block, which are counted there.
std::shared_ptr<void> AllocateMatrix(int64_t bytes) {
  constexpr std::align_val_t kAlignment{64};
  void* const data = ::operator new(static_cast<size_t>(std::max<int64_t>(bytes, 1)), kAlignment);
  UseHugePages(data, bytes);
  return {data, [](void* p) { ::operator delete(p, kAlignment); }};
}

// One role's matrix, while its parts come in and after.
struct Filling {
  std::shared_ptr<void> data;
  MatrixShape shape;
  int64_t missing = 0;  // entries
  WeightLayout layout = WeightLayout::kRows;
  QuantizedCut cut;  // of kInt8 and kInt4
};

// Puts the groups of 16 rows of a stored weight, from `begin` to `end`, into a role's matrix.
class GroupStore {
 public:
  // `roots`: of what the weight's columns weigh; null: all the same.
  GroupStore(const ModelConfig& config, const StoredWeight& stored, const float* roots, const Filling& whole)
      : config_(config),
        stored_(stored),
        roots_(roots),
        whole_(whole),
        first_group_(whole.cut.GroupOf(stored.use.column)) {}

  // False where a weight cannot be held. Packed levels are copied where they are of the matrix's own format.
  bool Run(int64_t begin, int64_t end) const {
    const int64_t row = stored_.use.RowOf(begin, config_), panel = whole_.cut.PanelOf(row);
    // A unit's last panel may have fewer rows: then 16 rows lie in two.
    const bool is_panel = end - begin == kPanelRows && whole_.cut.PanelRow(panel) == row &&
                          whole_.cut.RowsOf(panel) == kPanelRows && stored_.use.paired_block == 0;
    const auto store = [&](int64_t group, const QuantizedGroups& groups) {
      if (is_panel) {
        return StorePanelGroup(whole_.layout, groups, PanelAt(panel), first_group_ + group, whole_.cut.panel_groups);
      }
      for (int64_t r = begin; r < end; ++r) {
        Store(groups, r - begin, stored_.use.RowOf(r, config_), first_group_ + group);
      }
    };
    return GroupsOf(whole_.layout, stored_.matrix, begin, end, whole_.cut.column_unit, roots_, store);
  }

 private:
  void Store(const QuantizedGroups& groups, int64_t i, int64_t row, int64_t group) const {
    const QuantizedCut& cut = whole_.cut;
    const int64_t panel = cut.PanelOf(row);
    StoreGroup(whole_.layout, groups, i, PanelAt(panel), row - cut.PanelRow(panel), group, cut.panel_groups);
  }
  char* PanelAt(int64_t panel) const {
    return static_cast<char*>(whole_.data.get()) + panel * PanelBytes(whole_.layout, whole_.cut.panel_groups);
  }

  const ModelConfig& config_;
  const StoredWeight& stored_;
  const float* const roots_;
  const Filling& whole_;
  const int64_t first_group_;
};

class Packer {
 public:
  Packer(const ModelConfig& config, ElementType type, WeightLayout layout, WeightFormat format, bool as_stored,
         const ActivationSquares* columns)
      : config_(config), type_(type), layout_(layout), format_(format), as_stored_(as_stored), columns_(columns) {}

  void Add(const StoredWeight& stored) {
    const WeightUse& use = stored.use;
    const HostMatrix& matrix = stored.matrix;
    if (IsVector(use.role)) return AddVector(use, matrix);
    Filling& whole = matrices_[{use.role, use.layer}];
    if (whole.data == nullptr) Begin(stored, whole);
    if (as_stored_) CheckStoredAlike(stored, whole.layout);
    whole.missing -= matrix.rows * matrix.columns;
    if (whole.layout != WeightLayout::kRows) return AddQuantized(stored, whole);
    const int64_t element = BytesOf(type_);
    ParallelFor(matrix.rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, matrix.columns)),
                [&](int64_t begin, int64_t end) {
                  for (int64_t r = begin; r < end; ++r) {
                    const int64_t at = use.RowOf(r, config_) * whole.shape.columns + use.column;
                    CopyElements(matrix, r, static_cast<char*>(whole.data.get()) + at * element);
                  }
                });
    if (whole.missing == 0) Arrange(use, whole);
  }

  CpuWeights Finish() {
    CpuWeights packed;
    packed.type = type_;
    packed.format = format_;
    packed.embedding = View(WeightRole::kEmbedding, 0);
    packed.final_norm = Vector(WeightRole::kFinalNorm, 0);
    packed.lm_head = config_.tied_embeddings ? packed.embedding : View(WeightRole::kHead, 0);
    for (int l = 0; l < config_.layers; ++l) packed.layers.push_back(LayerOf(l));
    packed.bytes = bytes_;
    packed.memory = std::move(memory_);
    return packed;
  }

 private:
  using Key = std::pair<WeightRole, int>;  // role, layer
  static constexpr int64_t kGrain = 1 << 16;

  std::shared_ptr<void> Take(std::shared_ptr<void> memory, int64_t bytes) {
    bytes_ += bytes;
    memory_.push_back(memory);
    return memory;
  }

  // Memory for a role's matrix, quantized or row by row.
  void Begin(const StoredWeight& stored, Filling& whole) {
    const WeightUse& use = stored.use;
    whole.shape = ShapeOfRole(config_, use.role, use.layer);
    whole.missing = whole.shape.rows * whole.shape.columns;
    whole.layout = LayoutToHold(config_, stored, format_, as_stored_);
    int64_t bytes = whole.missing * BytesOf(type_);
    if (whole.layout != WeightLayout::kRows) {
      const int64_t f = config_.intermediate_size;
      whole.cut = QuantizedCut::Of(whole.shape.rows, whole.shape.columns,
                                   use.role == WeightRole::kExpertsGateUp ? 2 * f : whole.shape.rows,
                                   use.role == WeightRole::kExpertsDown ? f : whole.shape.columns);
      bytes = whole.cut.Panels(whole.shape.rows) * PanelBytes(whole.layout, whole.cut.panel_groups);
    }
    whole.data = Take(AllocateMatrix(bytes), bytes);
    // Rows and columns that only fill up panels and groups are 0: no weight is stored there.
    if (whole.layout != WeightLayout::kRows) ClearPadding(whole, bytes);
  }

  // A level of 0 with a scale of 0.
  void ClearPadding(const Filling& whole, int64_t bytes) const {
    if (!whole.cut.whole_panels()) std::memset(whole.data.get(), 0, static_cast<size_t>(bytes));
  }

  void AddQuantized(const StoredWeight& stored, const Filling& whole) const {
    std::atomic<bool> finite{true};
    const int64_t rows = stored.matrix.rows;
    std::vector<float> roots;
    if (columns_ != nullptr) roots = RootsOf(columns_->Of(config_, stored.use, stored.matrix.columns));
    ParallelFor((rows + kPanelRows - 1) / kPanelRows,
                std::max<int64_t>(1, kGrain / (kPanelRows * std::max<int64_t>(1, stored.matrix.columns))),
                [&](int64_t begin, int64_t end) {
                  const GroupStore groups(config_, stored, roots.empty() ? nullptr : roots.data(), whole);
                  for (int64_t i = begin; i < end; ++i) {
                    if (!groups.Run(i * kPanelRows, std::min(rows, (i + 1) * kPanelRows))) finite = false;
                  }
                });
    if (finite) return;
    throw std::invalid_argument(absl::StrCat(stored.name.empty() ? "a tensor" : stored.name,
                                             " has a weight that is not finite or too large, which ",
                                             whole.layout == WeightLayout::kInt8 ? "int8" : "int4", " cannot hold"));
  }

  void CopyElements(const HostMatrix& from, int64_t row, void* to) const {
    if (type_ == ElementType::kFloat32) {
      RowToFloat32(from, row, static_cast<float*>(to));
    } else {
      RowToBfloat16(from, row, static_cast<uint16_t*>(to));
    }
  }

  void AddVector(const WeightUse& use, const HostMatrix& matrix) {
    std::shared_ptr<void>& whole = vectors_[{use.role, use.layer}];
    if (whole == nullptr) {
      const int64_t size = ShapeOfRole(config_, use.role, use.layer).rows;
      const int64_t bytes = size * static_cast<int64_t>(sizeof(float));
      whole = Take(AllocateMatrix(bytes), bytes);
      std::fill_n(static_cast<float*>(whole.get()), size, 0.0f);
    }
    const bool round = type_ == ElementType::kBfloat16 && use.role != WeightRole::kQkvBias;
    for (int64_t r = 0; r < matrix.rows; ++r) {
      const std::byte* const element = matrix.bytes.data() + r * matrix.row_bytes();
      float* const to = static_cast<float*>(whole.get()) + use.RowOf(r, config_);
      if (round) {
        uint16_t rounded;
        ToBfloat16(matrix.type, element, 1, &rounded);
        ToFloat32(DType::kBF16, reinterpret_cast<const std::byte*>(&rounded), 1, to);
      } else {
        ToFloat32(matrix.type, element, 1, to);
      }
    }
  }

  // How a role's matrix should lie, and how many of its rows belong together.
  WeightLayout LayoutOf(const WeightUse& use, int64_t* unit_rows) const {
    const MatrixShape shape = ShapeOfRole(config_, use.role, use.layer);
    *unit_rows = shape.rows;
    const auto of_experts = [&](int64_t neurons) { return neurons % 2 == 0 ? layout_ : WeightLayout::kPanels; };
    switch (use.role) {
      case WeightRole::kEmbedding:
        return config_.tied_embeddings ? layout_ : WeightLayout::kRows;
      case WeightRole::kSharedGate:
        return WeightLayout::kRows;
      case WeightRole::kRouter:
        return WeightLayout::kPanels;
      case WeightRole::kExpertsGateUp:
        *unit_rows = 2 * int64_t{config_.intermediate_size};
        return layout_;
      case WeightRole::kExpertsDown:  // Cut at each expert's columns.
        return of_experts(config_.intermediate_size);
      case WeightRole::kSharedDown:
        return of_experts(shape.columns);
      default:
        return layout_;
    }
  }

  void Arrange(const WeightUse& use, Filling& whole) const {
    int64_t unit_rows = 0;
    WeightLayout layout = LayoutOf(use, &unit_rows);
    if (layout == WeightLayout::kRows || unit_rows % kPanelRows != 0) return;
    const bool bfloat16 = type_ == ElementType::kBfloat16;
    if (!bfloat16 || whole.shape.columns % 2 != 0) layout = WeightLayout::kPanels;
    PackPanels(whole.data.get(), layout, bfloat16, whole.shape.rows, whole.shape.columns);
    whole.layout = layout;
  }

  WeightView View(WeightRole role, int layer) const {
    const auto found = matrices_.find(Key{role, layer});
    if (found == matrices_.end()) return {};
    const Filling& whole = found->second;
    WeightView view{whole.data.get(), type_ == ElementType::kBfloat16, whole.shape.rows, whole.shape.columns,
                    whole.layout};
    view.cut = whole.cut;
    if (view.quantized()) view.bfloat16 = false;
    return view;
  }
  const float* Vector(WeightRole role, int layer) const {
    const auto found = vectors_.find(Key{role, layer});
    return found == vectors_.end() ? nullptr : static_cast<const float*>(found->second.get());
  }
  NetworkViews Networks(WeightRole gate_up, WeightRole down, int64_t count, int layer) const {
    const WeightView view = View(down, layer);
    if (view.data == nullptr) return {};
    return {View(gate_up, layer), view, count, view.columns / count};
  }

  LayerViews LayerOf(int l) const {
    LayerViews views;
    views.attention_norm = Vector(WeightRole::kAttentionNorm, l);
    views.qkv = View(WeightRole::kQkv, l);
    views.qkv_bias = Vector(WeightRole::kQkvBias, l);
    views.q_norm = Vector(WeightRole::kQueryNorm, l);
    views.k_norm = Vector(WeightRole::kKeyNorm, l);
    views.output = View(WeightRole::kOutput, l);
    views.output_bias = Vector(WeightRole::kOutputBias, l);
    views.query_latent_norm = Vector(WeightRole::kQueryLatentNorm, l);
    views.kv_latent_norm = Vector(WeightRole::kKeyValueLatentNorm, l);
    views.query_expand = View(WeightRole::kQueryExpand, l);
    views.kv_expand = View(WeightRole::kKeyValueExpand, l);
    views.feed_forward_norm = Vector(WeightRole::kFeedForwardNorm, l);
    views.router = View(WeightRole::kRouter, l);
    views.experts = Networks(WeightRole::kExpertsGateUp, WeightRole::kExpertsDown, config_.experts, l);
    views.shared = Networks(WeightRole::kSharedGateUp, WeightRole::kSharedDown, 1, l);
    views.shared_gate = View(WeightRole::kSharedGate, l);
    return views;
  }

  const ModelConfig& config_;
  const ElementType type_;
  const WeightLayout layout_;
  const WeightFormat format_;
  const bool as_stored_;
  const ActivationSquares* const columns_;
  std::map<Key, Filling> matrices_;
  std::map<Key, std::shared_ptr<void>> vectors_;  // float32
  std::vector<std::shared_ptr<void>> memory_;
  int64_t bytes_ = 0;
};

}  // namespace

WeightLayout LayoutToHold(const ModelConfig& config, const StoredWeight& stored, WeightFormat format, bool as_stored) {
  if (format == WeightFormat::kElements) return WeightLayout::kRows;
  const WeightLayout packed = PackedLayoutOf(stored.matrix.type);
  if (packed != WeightLayout::kRows) return packed;  // Quantizing twice costs more than it saves.
  // An embedding in elements is quantized as ever: readers of such folders know no packed one.
  if (as_stored && stored.use.role != WeightRole::kEmbedding) return WeightLayout::kRows;
  return QuantizedLayout(stored.use.role, format, config.tied_embeddings);
}

void CheckStoredAlike(const StoredWeight& stored, WeightLayout held) {
  if (stored.use.role == WeightRole::kEmbedding || PackedLayoutOf(stored.matrix.type) == held) return;
  throw std::invalid_argument(absl::StrCat("tensor ", Quoted(stored.name), ": ", DTypeName(stored.matrix.type),
                                           ", but another one that lies in a matrix with it is stored otherwise: ",
                                           "weights float32 and bfloat16 widen both"));
}

WeightLayout QuantizedLayout(WeightRole role, WeightFormat format, bool tied_embeddings) {
  if (format == WeightFormat::kElements || IsVector(role)) return WeightLayout::kRows;
  const WeightLayout narrow = format == WeightFormat::kInt8 ? WeightLayout::kInt8 : WeightLayout::kInt4;
  switch (role) {
    case WeightRole::kEmbedding:
      return tied_embeddings ? WeightLayout::kInt8 : narrow;
    case WeightRole::kHead:
    case WeightRole::kQkv:
    case WeightRole::kOutput:
    case WeightRole::kQueryExpand:
    case WeightRole::kKeyValueExpand:
      return WeightLayout::kInt8;
    case WeightRole::kRouter:
    case WeightRole::kSharedGate:
      return WeightLayout::kRows;
    default:
      return narrow;
  }
}

CpuWeights PackWeights(const ModelConfig& config, const ModelWeights& weights, ElementType type, WeightLayout layout,
                       const LoadProgress& progress, WeightFormat format, bool as_stored,
                       const ActivationSquares* columns) {
  Packer packer(config, type, layout, format, as_stored, columns);
  PackEach(config, weights, progress, [&](const StoredWeight& stored) { packer.Add(stored); });
  return packer.Finish();
}

WeightView WithRoundedActivations(WeightView view) {
  view.rounds_activations = view.quantized();
  return view;
}

LayerViews WithRoundedActivations(const LayerViews& views) {
  LayerViews rounded = views;
  for (WeightView* const view :
       {&rounded.qkv, &rounded.output, &rounded.query_expand, &rounded.kv_expand, &rounded.experts.gate_up,
        &rounded.experts.down, &rounded.shared.gate_up, &rounded.shared.down}) {
    *view = WithRoundedActivations(*view);
  }
  return rounded;
}

}  // namespace c3po::cpu
