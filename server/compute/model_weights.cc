#include "server/compute/model_weights.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/model/config/tensor_plan.h"

namespace c3po {
namespace {

bool IsOutside(WeightRole role) {
  return role == WeightRole::kEmbedding || role == WeightRole::kFinalNorm || role == WeightRole::kHead;
}

// One tensor as the weights that it holds: matrices that lie side by side in theirs are stored one after the other.
void AppendParts(const PlannedTensor& planned, const TensorView& view, std::vector<StoredWeight>& to) {
  const HostMatrix all = HostMatrix::Of(view);
  const bool beside = planned.use.role == WeightRole::kExpertsDown;
  if (planned.shape.size() < 3 || (!beside && planned.stride == 0)) {
    to.push_back({planned.use, all, planned.name});
    return;
  }
  const int64_t rows = planned.shape[1], columns = planned.shape[2];
  for (int64_t i = 0; i < planned.shape[0]; ++i) {
    to.push_back({planned.use, all.Rows(i * rows, rows), planned.name});
    (beside ? to.back().use.column : to.back().use.row) += i * (beside ? columns : planned.stride);
  }
}

// Calls `pack` with a weight that is stored as its transpose, the right way round: a copy, while it is packed.
void PackTransposed(const StoredWeight& stored, absl::FunctionRef<void(const StoredWeight&)> pack) {
  const HostMatrix& from = stored.matrix;
  std::vector<float> row(static_cast<size_t>(from.columns));
  std::vector<float> turned(static_cast<size_t>(from.rows * from.columns));
  for (int64_t r = 0; r < from.rows; ++r) {
    RowToFloat32(from, r, row.data());
    for (int64_t c = 0; c < from.columns; ++c)
      turned[static_cast<size_t>(c * from.rows + r)] = row[static_cast<size_t>(c)];
  }
  StoredWeight whole{
      stored.use,
      {DType::kF32, from.columns, from.rows,
       absl::MakeConstSpan(reinterpret_cast<const std::byte*>(turned.data()), turned.size() * sizeof(float))},
      stored.name};
  whole.use.transposed = false;
  pack(whole);
}

// 0, 1, 10, 11, ..., 2, ...
std::vector<size_t> LayersByName(size_t layers) {
  std::vector<size_t> order(layers);
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [](size_t a, size_t b) { return std::to_string(a) < std::to_string(b); });
  return order;
}

// Entries that parts of a matrix fill, by role and layer.
using Filled = std::map<std::pair<WeightRole, int>, int64_t>;

void AddFilled(const ModelConfig& config, const std::vector<StoredWeight>& parts, int layer, Filled& filled) {
  for (const StoredWeight& part : parts) {
    const WeightUse& use = part.use;
    const HostMatrix& matrix = part.matrix;
    const MatrixShape shape = ShapeOfRole(config, use.role, use.layer);
    const int64_t rows = use.transposed ? matrix.columns : matrix.rows;
    const int64_t columns = use.transposed ? matrix.rows : matrix.columns;
    const bool inside =
        use.row >= 0 && use.column >= 0 && rows <= shape.rows - use.row && columns <= shape.columns - use.column;
    const bool whole_blocks = use.paired_block == 0 || (!use.transposed && rows % use.paired_block == 0);
    if (use.layer != layer || !inside || !whole_blocks) {
      throw std::invalid_argument(absl::StrCat("a weight of layer ", layer, " does not fit into its matrix"));
    }
    filled[{use.role, use.layer}] += matrix.rows * matrix.columns;
  }
}

void CheckComplete(const ModelConfig& config, const ModelWeights& weights) {
  Filled expected, filled;
  const auto expect = [&](const PlannedTensor& planned) {
    filled[{planned.use.role, planned.use.layer}] += 0;
    expected[{planned.use.role, planned.use.layer}] +=
        std::accumulate(planned.shape.begin(), planned.shape.end(), int64_t{1}, std::multiplies<>());
    return absl::OkStatus();
  };
  if (weights.layers.size() != static_cast<size_t>(config.layers)) {
    throw std::invalid_argument(absl::StrCat("weights of ", weights.layers.size(), " layers, not ", config.layers));
  }
  const auto first_names = [](const std::string&) { return false; };  // Under any names they fill the same.
  VisitTensors(config, first_names, expect).IgnoreError();            // It cannot fail.
  AddFilled(config, weights.outside, 0, filled);
  for (int l = 0; l < config.layers; ++l) AddFilled(config, weights.layers[static_cast<size_t>(l)], l, filled);
  if (filled != expected) throw std::invalid_argument("the weights are not those of the configuration");
}

}  // namespace

absl::StatusOr<ModelWeights> ViewWeights(std::shared_ptr<const Checkpoint> checkpoint, const ModelConfig& config) {
  C3PO_RETURN_IF_ERROR(CheckTensors(*checkpoint, config));
  ModelWeights weights;
  weights.layers.resize(static_cast<size_t>(config.layers));
  const auto add = [&](const PlannedTensor& planned) -> absl::Status {
    C3PO_ASSIGN_OR_RETURN(const TensorView view, checkpoint->Find(planned.name));
    AppendParts(planned, view,
                IsOutside(planned.use.role) ? weights.outside : weights.layers[static_cast<size_t>(planned.use.layer)]);
    return absl::OkStatus();
  };
  C3PO_RETURN_IF_ERROR(VisitTensors(
      config, [&](const std::string& name) { return checkpoint->Has(name); }, add));
  weights.source = std::move(checkpoint);
  return weights;
}

void PackEach(const ModelConfig& config, const ModelWeights& weights, const LoadProgress& progress,
              absl::FunctionRef<void(const StoredWeight&)> pack) {
  CheckComplete(config, weights);
  const auto pack_all = [&](const std::vector<StoredWeight>& parts) {
    for (const StoredWeight& stored : parts) {
      if (const std::string problem = ScaleProblem(stored.matrix); !problem.empty()) {
        throw std::invalid_argument(absl::StrCat("tensor ", Quoted(stored.name), ": ", problem));
      }
      if (stored.use.transposed) {
        PackTransposed(stored, pack);
      } else {
        pack(stored);
      }
      DropPages(stored.matrix);
    }
  };
  pack_all(weights.outside);
  int done = 0;
  for (const size_t l : LayersByName(weights.layers.size())) {
    pack_all(weights.layers[l]);
    if (progress) progress(++done, config.layers);
  }
}

}  // namespace c3po
