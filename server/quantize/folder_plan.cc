#include "server/quantize/folder_plan.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "index/base/status_macros.h"
#include "server/compute/cpu/cpu_weights.h"
#include "server/model/config/tensor_plan.h"

namespace c3po {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kGroup = 32, kHalfGroup = 16;
constexpr char kLinear[] = "Linear", kHeadPattern[] = "re:.*lm_head$";

// Stored weights by role, layer, column and first row.
class Sources {
 public:
  explicit Sources(const ModelWeights& weights) {
    for (const StoredWeight& stored : weights.outside) Add(stored);
    for (const auto& layer : weights.layers) {
      for (const StoredWeight& stored : layer) Add(stored);
    }
  }

  // The rows of a tensor, all of which lie in one stored weight.
  absl::StatusOr<HostMatrix> Find(const PlannedTensor& planned) const {
    const WeightUse& use = planned.use;
    const int64_t rows = planned.shape.front(), columns = planned.shape.size() < 2 ? 1 : planned.shape.back();
    auto after = stored_.upper_bound({use.role, use.layer, use.column, use.row});
    if (after != stored_.begin()) {
      const StoredWeight& stored = *std::prev(after)->second;
      const int64_t first = use.row - stored.use.row;
      const bool same = stored.use.role == use.role && stored.use.layer == use.layer &&
                        stored.use.column == use.column && stored.use.paired_block == use.paired_block;
      if (same && !stored.use.transposed && first >= 0 && first + rows <= stored.matrix.rows &&
          columns == stored.matrix.columns) {
        return stored.matrix.Rows(first, rows);
      }
    }
    return absl::InvalidArgumentError(absl::StrCat("tensor ", planned.name, ": no stored weight has its rows"));
  }

 private:
  void Add(const StoredWeight& stored) {
    const WeightUse& use = stored.use;
    stored_[{use.role, use.layer, use.column, use.row}] = &stored;
  }

  std::map<std::tuple<WeightRole, int, int64_t, int64_t>, const StoredWeight*> stored_;
};

// Modules of one kind, in all layers and of all experts: "re:.*model\.layers\.\d+\.mlp\.gate$" of
// "model.layers.3.mlp.gate".
std::string PatternOf(const std::string& module) {
  std::vector<std::string> parts = absl::StrSplit(module, '.');
  for (std::string& part : parts) {
    if (std::all_of(part.begin(), part.end(), absl::ascii_isdigit)) part = "\\d+";
  }
  return absl::StrCat("re:.*", absl::StrJoin(parts, "\\."), "$");
}

Json GroupJson(int bits, int64_t group_columns, const std::vector<std::string>& targets) {
  return {{"targets", targets},
          {"weights",
           {{"num_bits", bits},
            {"type", "int"},
            {"symmetric", true},
            {"strategy", "group"},
            {"group_size", group_columns},
            {"dynamic", false},
            {"actorder", nullptr},
            {"block_structure", nullptr}}},
          {"input_activations", nullptr},
          {"output_activations", nullptr}};
}

// One group for each way that weights are quantized. The one that most are says "Linear"; others name their modules,
// which comes before the class.
Json GroupsJson(const std::vector<PlannedWeight>& weights) {
  using Way = std::pair<int, int64_t>;  // bits, columns of a scale
  std::map<Way, std::set<std::string>> patterns;
  std::map<Way, int64_t> counts;
  for (const PlannedWeight& weight : weights) {
    if (!weight.quantized()) continue;
    const Way way{weight.bits(), weight.group_columns};
    ++counts[way];
    patterns[way].insert(PatternOf(weight.stem()));
  }
  const auto most =
      std::max_element(counts.begin(), counts.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  Json groups = Json::object();
  for (const auto& [way, count] : counts) {
    std::vector<std::string> targets = {kLinear};
    if (way != most->first) targets.assign(patterns[way].begin(), patterns[way].end());
    groups[absl::StrCat("group_", groups.size())] = GroupJson(way.first, way.second, targets);
  }
  return groups;
}

// What of the class Linear stays as it is.
std::vector<std::string> IgnoredModules(const ModelConfig& config, const std::vector<PlannedWeight>& weights) {
  std::set<std::string> ignored;
  for (const PlannedWeight& weight : weights) {
    const bool linear = !IsVector(weight.role) && weight.role != WeightRole::kEmbedding;
    if (linear && !weight.quantized()) ignored.insert(PatternOf(weight.stem()));
  }
  if (config.tied_embeddings) ignored.insert(kHeadPattern);
  return {ignored.begin(), ignored.end()};
}

}  // namespace

std::string PlannedWeight::stem() const { return std::string(absl::StripSuffix(name, ".weight")); }

std::vector<ShardTensor> PlannedWeight::tensors() const {
  if (!quantized()) return {{name, from.type, shape}};
  const int64_t rows = from.rows, columns = from.columns;
  return {{stem() + ".weight_packed", DType::kI32, {rows, columns * bits() / 32}},
          {stem() + ".weight_scale", DType::kBF16, {rows, columns / group_columns}},
          {stem() + ".weight_shape", DType::kI64, {2}}};
}

absl::StatusOr<std::vector<PlannedWeight>> PlanWeights(const ModelConfig& config, const ModelWeights& weights,
                                                       WeightFormat format) {
  const Sources sources(weights);
  std::vector<PlannedWeight> planned;
  const auto add = [&](const PlannedTensor& tensor) -> absl::Status {
    PlannedWeight weight{tensor.name, tensor.use.role, tensor.shape};
    C3PO_ASSIGN_OR_RETURN(weight.from, sources.Find(tensor));
    // transformers cannot tie an LM head to an embedding that is packed.
    if (weight.from.columns % kHalfGroup == 0 && weight.role != WeightRole::kEmbedding) {
      weight.layout = cpu::QuantizedLayout(tensor.use.role, format, config.tied_embeddings);
      weight.group_columns = weight.from.columns % kGroup == 0 ? kGroup : kHalfGroup;
    }
    planned.push_back(std::move(weight));
    return absl::OkStatus();
  };
  C3PO_RETURN_IF_ERROR(VisitSeparateTensors(config, add));
  return planned;
}

absl::StatusOr<std::string> QuantizedConfig(absl::string_view text, const ModelConfig& config,
                                            const std::vector<PlannedWeight>& weights) {
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    return absl::InvalidArgumentError("not a JSON object, but for numbers such as NaN that JSON does not have");
  }
  if (!config.tied_embeddings && json.value("tie_word_embeddings", false)) json["tie_word_embeddings"] = false;
  json["quantization_config"] = {
      {"quant_method", "compressed-tensors"},     {"format", "pack-quantized"}, {"quantization_status", "compressed"},
      {"global_compression_ratio", nullptr},      {"kv_cache_scheme", nullptr}, {"config_groups", GroupsJson(weights)},
      {"ignore", IgnoredModules(config, weights)}};
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace c3po
