#include "server/model/objective_memory.h"

#include <algorithm>

#include "absl/types/span.h"
#include "server/compute/block_pool.h"
#include "server/model/answer_tree.h"

namespace c3po {
namespace {

// What the rows of some neighbors are.
struct Sizes {
  int64_t rows = 0;
  int64_t prepared = 0, prepared_max = 0;  // rows and prompt tokens before them, of all cases and of the largest
  int64_t case_pairs_max = 0;              // rows of a case times positions that its deepest one attends to
  int64_t attended = 0;                    // positions that rows attend to, of all rows
  // Likewise where a row is compared with all rows of its case, and the rows and prompts of all cases.
  int64_t compared = 0, columns = 0;
  int64_t blocks = 0;  // of the states
};

// In `upper` layers.
Sizes SizesOf(const ModelConfig& config, const ObjectiveSpec& spec, int prompt_positions, int64_t upper,
              const BackendInfo& info) {
  Sizes sizes;
  for (const NeighborCase& neighbor : spec.cases) {
    const absl::Span<const int32_t> prompt(neighbor.prompt);
    const size_t moved = std::min(prompt.size(), static_cast<size_t>(prompt_positions));
    const AnswerTree tree = AnswerTree::Build(prompt.subspan(prompt.size() - moved), neighbor.continuations);
    const auto prefix = static_cast<int64_t>(prompt.size() - moved);
    const auto rows = static_cast<int64_t>(tree.rows());
    sizes.rows += rows;
    for (const int depth : tree.depths) sizes.attended += prefix + depth + 1;
    sizes.compared += rows * (prefix + rows);
    sizes.columns += prefix + rows;
    sizes.blocks += upper * StateBlocksOfLayer(prefix) + StateBlocksOfRows(rows, config, info.activations, info.kv);
    sizes.prepared += prefix + rows;
    sizes.prepared_max = std::max(sizes.prepared_max, prefix + rows);
    const int deepest = tree.depths.empty() ? 0 : *std::max_element(tree.depths.begin(), tree.depths.end());
    sizes.case_pairs_max = std::max(sizes.case_pairs_max, rows * (prefix + deepest + 1));
  }
  return sizes;
}

// Numbers of one row.
struct Widths {
  int64_t hidden, experts;
  int64_t heads;
  int64_t projections;  // queries, keys and values, and the same before norm and rotation
  int64_t context;
  int64_t keys_and_values;
  int64_t neurons;  // of all networks that a row takes
};

Widths WidthsOf(const ModelConfig& config) {
  const int64_t q = int64_t{config.heads} * config.head_dim;
  const int64_t kv = int64_t{config.kv_heads} * (config.head_dim + config.value_dim);
  const int64_t latent = config.latent ? config.latent->query_rank + config.latent->kv_rank + config.rope_dim : 0;
  const int64_t routed = int64_t{config.experts_per_token} * config.intermediate_size;
  const int64_t neurons = std::max<int64_t>(routed + config.shared_intermediate_size, config.dense_intermediate_size);
  const int64_t context = int64_t{config.heads} * config.value_dim;
  return {config.hidden_size, config.experts, config.heads, 2 * (q + kv) + latent, context, kv, neurons};
}

}  // namespace

int64_t ObjectiveMemory(const ModelConfig& config, const ObjectiveSpec& spec, int prompt_positions,
                        const BackendInfo& info) {
  const int entry = config.moe_layers[static_cast<size_t>(spec.critical_layers.front())];
  const int64_t upper = config.layers - entry, element_bytes = BytesOf(info.activations);
  const Sizes sizes = SizesOf(config, spec, prompt_positions, upper, info);
  const Widths w = WidthsOf(config);
  const int64_t rows = sizes.rows;

  const int64_t state_bytes = sizes.blocks * StateBlockBytes(config, info.kv);
  // One pass over neighbors' prompts and trees, beside what stays of them.
  const int64_t preparing_row =
      4 * w.hidden + w.projections + w.keys_and_values + 2 * w.context + 4 * w.experts + 4 * w.neurons;
  const int64_t preparing_rows = std::min(sizes.prepared, std::max(sizes.prepared_max, kPreparationRowsMax));
  const int64_t preparing = preparing_rows * preparing_row + w.heads * std::max(sizes.attended, sizes.case_pairs_max);

  const int64_t of_first_layer = rows * (4 * w.hidden + 2 * w.neurons + 5 * w.experts);
  const int64_t outputs = rows * w.experts * w.hidden;
  const int64_t remembered = outputs * element_bytes <= spec.remembered_bytes_max ? outputs : 0;
  const int64_t tape_row = 3 * w.hidden + w.projections + 6 * w.experts + 3 * w.neurons;
  // Who pads keeps no probabilities, and computes them anew on the way down.
  const int64_t tapes = (upper - 1) * (rows * tape_row + (info.pads ? 0 : w.heads * sizes.attended));
  // Of the layer that runs: what is passed on, and on the way down the derivative of what its tape holds.
  const int64_t working_rows =
      rows * (6 * w.hidden + 2 * w.projections + 2 * w.context + 4 * w.experts + 4 * w.neurons);
  // Half as much again, of up to 6 kinds of pairs, in float32 on the way through softmax, and 3 copies of the columns.
  const int64_t padded = 3 * (6 * 2 * w.heads * sizes.compared + 3 * w.keys_and_values * sizes.columns) / 2;
  const int64_t working = working_rows + (info.pads ? padded : w.heads * sizes.attended);
  const int64_t head = rows * (3 * w.hidden + (info.holds_logits ? 3 * int64_t{config.vocabulary_size} : 0));
  const int64_t evaluating = of_first_layer + remembered + tapes + std::max(working, head);
  return state_bytes + std::max(preparing, evaluating) * element_bytes;
}

}  // namespace c3po
