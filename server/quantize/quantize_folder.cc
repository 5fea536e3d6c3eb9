#include "server/quantize/quantize_folder.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <exception>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "index/base/durable_file.h"
#include "index/base/status_macros.h"
#include "server/compute/cpu/stored_groups.h"
#include "server/compute/cpu/thread_pool.h"
#include "server/compute/model_weights.h"
#include "server/model/config/tensor_plan.h"
#include "server/quantize/folder_plan.h"
#include "server/quantize/partial_folder.h"
#include "server/quantize/shard_file.h"
#include "server/weights/gguf_parts.h"

namespace c3po {
namespace {

using cpu::kGroupColumns;
using cpu::kPanelRows;

template <typename T>
absl::Span<const std::byte> BytesOf(const std::vector<T>& values) {
  return absl::MakeConstSpan(reinterpret_cast<const std::byte*>(values.data()), values.size() * sizeof(T));
}

// A weight's packed levels, row after row, and its scales.
class PackedRows {
 public:
  explicit PackedRows(const PlannedWeight& weight)
      : weight_(weight),
        words_(static_cast<size_t>(weight.from.rows * row_words())),
        scales_(static_cast<size_t>(weight.from.rows * row_scales())) {}

  // `roots`: see QuantizeGroups; null, or of all columns. False where a weight cannot be held.
  bool Quantize(const float* roots) {
    std::atomic<bool> held{true};
    const int64_t rows = weight_.from.rows;
    cpu::ParallelFor((rows + kPanelRows - 1) / kPanelRows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i * kPanelRows, last = std::min(rows, first + kPanelRows);
        const auto take = [&](int64_t group, const cpu::QuantizedGroups& groups) { Take(groups, group, first, last); };
        if (!cpu::QuantizeRows(weight_.layout, weight_.from, first, last, weight_.from.columns, roots, take)) {
          held = false;
        }
      }
    });
    return held;
  }

  const std::vector<uint32_t>& words() const { return words_; }
  const std::vector<uint16_t>& scales() const { return scales_; }

 private:
  int64_t row_words() const { return weight_.from.columns * weight_.bits() / 32; }
  int64_t row_scales() const { return weight_.from.columns / weight_.group_columns; }

  void Take(const cpu::QuantizedGroups& groups, int64_t group, int64_t first, int64_t last) {
    const int64_t begin = group * kGroupColumns, columns = std::min(kGroupColumns, weight_.from.columns - begin);
    const int64_t in_word = 32 / weight_.bits();
    for (int64_t r = first; r < last; ++r) {
      for (int64_t w = 0; w < columns / in_word; ++w) {
        words_[static_cast<size_t>(r * row_words() + begin / in_word + w)] =
            cpu::PackedOfQuants(weight_.layout, groups.words[w * kPanelRows + r - first]);
      }
      for (int64_t s = 0; s < columns / weight_.group_columns; ++s) {
        scales_[static_cast<size_t>(r * row_scales() + begin / weight_.group_columns + s)] = groups.scales[r - first];
      }
    }
  }

  const PlannedWeight& weight_;
  std::vector<uint32_t> words_;
  std::vector<uint16_t> scales_;
};

// cpu::RootsOf of what a weight's columns weigh.
absl::StatusOr<std::vector<float>> RootsOf(const ColumnWeighting& columns, const PlannedWeight& weight) {
  const absl::Span<const float> squares = columns ? columns(weight.name) : absl::Span<const float>();
  if (squares.empty()) return std::vector<float>();
  bool valid = static_cast<int64_t>(squares.size()) == weight.from.columns;
  for (const float square : squares) valid = valid && square >= 0 && std::isfinite(square);
  if (!valid) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", weight.name, ": ", squares.size(), " weights of ",
                                                   weight.from.columns, " columns, each must be a number >= 0"));
  }
  return cpu::RootsOf(squares);
}

absl::Status WriteWeight(const PlannedWeight& weight, const ColumnWeighting& columns, ShardFile& shard) {
  const std::vector<ShardTensor> tensors = weight.tensors();
  if (!weight.quantized()) return shard.Write(tensors[0].name, weight.from.bytes);
  C3PO_ASSIGN_OR_RETURN(const std::vector<float> roots, RootsOf(columns, weight));
  PackedRows packed(weight);
  if (!packed.Quantize(roots.empty() ? nullptr : roots.data())) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tensor ", weight.name, ": a weight is not finite or too large, which ", weight.bits(), " bits cannot hold"));
  }
  C3PO_RETURN_IF_ERROR(shard.Write(tensors[0].name, BytesOf(packed.words())));
  C3PO_RETURN_IF_ERROR(shard.Write(tensors[1].name, BytesOf(packed.scales())));
  return shard.Write(tensors[2].name, BytesOf(std::vector<int64_t>{weight.from.rows, weight.from.columns}));
}

// Weights [begin, end) of each file, in their order.
using Shards = std::vector<std::pair<size_t, size_t>>;

int64_t BytesOf(const PlannedWeight& weight) {
  int64_t bytes = 0;
  for (const ShardTensor& tensor : weight.tensors()) bytes += tensor.bytes();
  return bytes;
}

Shards DivideIntoShards(const std::vector<PlannedWeight>& weights, int64_t bytes_max) {
  Shards shards;
  int64_t bytes = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    const int64_t own = BytesOf(weights[i]);
    if (shards.empty() || bytes + own > bytes_max) {
      shards.emplace_back(i, i);
      bytes = 0;
    }
    bytes += own;
    shards.back().second = i + 1;
  }
  return shards;
}

std::string ShardName(size_t index, size_t count) {
  return count == 1 ? "model.safetensors" : absl::StrFormat("model-%05d-of-%05d.safetensors", index + 1, count);
}

class FolderWriter {
 public:
  FolderWriter(const QuantizeOptions& options, const std::vector<PlannedWeight>& weights, std::string folder)
      : options_(options), weights_(weights), folder_(std::move(folder)) {}

  absl::StatusOr<QuantizeResult> WriteWeights() {
    const Shards shards = DivideIntoShards(weights_, options_.shard_bytes_max);
    nlohmann::ordered_json map = nlohmann::ordered_json::object();
    for (size_t i = 0; i < shards.size(); ++i) {
      const std::string name = ShardName(i, shards.size());
      C3PO_RETURN_IF_ERROR(WriteShard(name, shards[i].first, shards[i].second, map));
    }
    if (shards.size() > 1) {
      const nlohmann::ordered_json index = {{"metadata", {{"total_size", result_.bytes_to}}}, {"weight_map", map}};
      C3PO_RETURN_IF_ERROR(WriteFileDurably(folder_ + "/model.safetensors.index.json", index.dump(2) + "\n"));
    }
    return result_;
  }

 private:
  absl::Status WriteShard(const std::string& name, size_t begin, size_t end, nlohmann::ordered_json& map) {
    std::vector<ShardTensor> tensors;
    for (size_t i = begin; i < end; ++i) {
      for (ShardTensor& tensor : weights_[i].tensors()) tensors.push_back(std::move(tensor));
    }
    for (const ShardTensor& tensor : tensors) map[tensor.name] = name;
    C3PO_ASSIGN_OR_RETURN(const auto shard, ShardFile::Create(absl::StrCat(folder_, "/", name), tensors));
    for (size_t i = begin; i < end; ++i) {
      if (options_.stopped && options_.stopped()) return absl::CancelledError("stopped; nothing is left of it");
      const PlannedWeight& weight = weights_[i];
      C3PO_RETURN_IF_ERROR(WriteWeight(weight, options_.columns, *shard));
      DropPages(weight.from);
      ++result_.tensors;
      result_.quantized += weight.quantized() ? 1 : 0;
      result_.bytes_from += static_cast<int64_t>(weight.from.bytes.size());
      result_.bytes_to += BytesOf(weight);
      if (options_.progress) options_.progress(static_cast<int>(i + 1), static_cast<int>(weights_.size()));
    }
    return shard->Finish();
  }

  const QuantizeOptions& options_;
  const std::vector<PlannedWeight>& weights_;
  const std::string folder_;
  QuantizeResult result_;
};

absl::StatusOr<QuantizeResult> Quantize(const QuantizeOptions& options) {
  if (IsGgufPath(options.from)) {
    return absl::InvalidArgumentError(absl::StrCat(
        options.from, ": a GGUF file is quantized as it is, and has its tokenizer in itself; quantize a folder"));
  }
  C3PO_ASSIGN_OR_RETURN(std::shared_ptr<const Checkpoint> checkpoint, OpenCheckpoint(options.from));
  C3PO_ASSIGN_OR_RETURN(const ModelConfig config, ReadConfig(*checkpoint));
  C3PO_ASSIGN_OR_RETURN(const ModelWeights stored, ViewWeights(checkpoint, config));
  for (const std::string& name : checkpoint->names()) {
    if (!IsPackedType(checkpoint->Find(name)->dtype)) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(checkpoint->config_path(), ": quantization_config: these weights are quantized already"));
  }
  C3PO_ASSIGN_OR_RETURN(const std::vector<PlannedWeight> weights, PlanWeights(config, stored, options.weights));
  const auto config_json = QuantizedConfig(checkpoint->config_json(), config, weights);
  if (!config_json.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(checkpoint->config_path(), ": ", config_json.status().message()));
  }
  C3PO_ASSIGN_OR_RETURN(const std::vector<std::string> others, FilesBesideWeights(options.from));
  C3PO_ASSIGN_OR_RETURN(const std::unique_ptr<PartialFolder> folder, PartialFolder::Create(options.to));
  const std::string& path = folder->partial_path();
  for (const std::string& name : others) {
    C3PO_RETURN_IF_ERROR(CopyWholeFile(absl::StrCat(options.from, "/", name), absl::StrCat(path, "/", name)));
  }
  C3PO_RETURN_IF_ERROR(WriteFileDurably(path + "/config.json", *config_json));
  C3PO_ASSIGN_OR_RETURN(const QuantizeResult result, FolderWriter(options, weights, path).WriteWeights());
  C3PO_RETURN_IF_ERROR(CheckFolder(path));
  C3PO_RETURN_IF_ERROR(folder->Publish());
  return result;
}

}  // namespace

absl::StatusOr<QuantizeResult> QuantizeFolder(const QuantizeOptions& options) {
  try {
    return Quantize(options);
  } catch (const std::exception& error) {
    return absl::ResourceExhaustedError(absl::StrCat(options.from, ": ", error.what()));
  }
}

}  // namespace c3po
