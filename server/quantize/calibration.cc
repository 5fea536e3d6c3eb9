#include "server/quantize/calibration.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/compute/device.h"
#include "server/compute/model_weights.h"
#include "server/model/config/tensor_plan.h"

namespace c3po {
namespace {

constexpr int kSequence = 512;  // tokens
constexpr int kPiece = 64;      // of a sequence, at once
constexpr int kHeadRows = 8;    // of a piece
constexpr int kBlockPositions = 16;
constexpr int64_t kNeighborCacheBytes = 1 << 20;  // No neighbor is prepared.

// One sequence from its beginning.
absl::Status ReadSequence(absl::Span<const int32_t> tokens, absl::Span<const int32_t> blocks, MoeModel& model) {
  std::vector<ReadoutRequest> wanted(kHeadRows);
  for (ReadoutRequest& request : wanted) request.distribution = true;
  std::vector<SegmentOutput> outputs;
  for (size_t begin = 0; begin < tokens.size(); begin += kPiece) {
    Segment segment;
    segment.kv.blocks = blocks;
    segment.start = static_cast<int>(begin);
    segment.tokens = tokens.subspan(begin, kPiece);
    segment.row_readouts = absl::MakeConstSpan(wanted).subspan(0, segment.tokens.size());
    C3PO_RETURN_IF_ERROR(model.Forward({&segment, 1}, outputs));
    for (const Readout& row : outputs[0].row_readouts) C3PO_RETURN_IF_ERROR(row.status);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<LoadedModel> OpenModel(const OpenOptions& options) {
  C3PO_ASSIGN_OR_RETURN(const std::shared_ptr<const Checkpoint> checkpoint, OpenCheckpoint(options.folder));
  C3PO_ASSIGN_OR_RETURN(ModelConfig config, ReadConfig(*checkpoint));
  PlacementOptions wanted;
  wanted.weights = options.weights;
  wanted.arithmetic = options.arithmetic;
  wanted.kv_cache_dtype = "float32";
  C3PO_ASSIGN_OR_RETURN(WeightPlacement placement, ChoosePlacement(*checkpoint, wanted));
  placement.columns = options.columns;
  placement.observer = options.observer;
  C3PO_ASSIGN_OR_RETURN(const ModelWeights weights, ViewWeights(checkpoint, config));
  C3PO_ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend, MakeBackend(config, weights, placement));
  return LoadedModel{MoeModel::OnBackend(std::move(config), std::move(backend), kNeighborCacheBytes),
                     placement.weights(), placement.arithmetic()};
}

absl::StatusOr<Calibration> Calibrate(const std::string& folder, const TextTokens& text, int64_t tokens_max) {
  const auto squares = std::make_shared<cpu::ActivationSquares>();
  OpenOptions options;
  options.folder = folder;
  options.observer = squares;
  C3PO_ASSIGN_OR_RETURN(const LoadedModel opened, OpenModel(options));
  MoeModel* const model = opened.model.get();
  const int window = std::min(kSequence, model->shape().context_window);
  const int block_count = (window + kBlockPositions - 1) / kBlockPositions;
  std::vector<int32_t> blocks(static_cast<size_t>(block_count));
  std::iota(blocks.begin(), blocks.end(), 0);
  C3PO_RETURN_IF_ERROR(model->AllocateKvCache({block_count, kBlockPositions}));
  const size_t count = std::min(text.tokens.size(), static_cast<size_t>(std::max<int64_t>(0, tokens_max)));
  if (count == 0) return absl::InvalidArgumentError("the text has no token to calibrate with");
  const size_t own = static_cast<size_t>(window) - (text.begin ? 1 : 0);
  for (size_t begin = 0; begin < count; begin += own) {
    const size_t size = std::min(own, count - begin), prefix = text.begin ? 1 : 0;
    std::vector<int32_t> sequence(prefix + size);
    if (text.begin) sequence.front() = *text.begin;
    std::copy_n(text.tokens.begin() + static_cast<int64_t>(begin), size,
                sequence.begin() + static_cast<int64_t>(prefix));
    C3PO_RETURN_IF_ERROR(ReadSequence(sequence, blocks, *model));
  }
  return Calibration{squares, static_cast<int64_t>(count)};
}

absl::StatusOr<ColumnWeighting> WeightingOf(const std::string& from,
                                            std::shared_ptr<const cpu::ActivationSquares> squares) {
  struct Place {
    WeightUse use;
    int64_t columns = 0;
  };
  C3PO_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint, OpenCheckpoint(from));
  C3PO_ASSIGN_OR_RETURN(const ModelConfig config, ReadConfig(*checkpoint));
  const auto places = std::make_shared<std::map<std::string, Place>>();
  C3PO_RETURN_IF_ERROR(VisitSeparateTensors(config, [&](const PlannedTensor& planned) {
    (*places)[planned.name] = {planned.use, planned.shape.back()};
    return absl::OkStatus();
  }));
  const auto columns = std::make_shared<std::vector<float>>();
  return [config, squares, places, columns](absl::string_view tensor) -> absl::Span<const float> {
    const auto found = places->find(std::string(tensor));
    if (found == places->end()) return {};
    *columns = squares->Of(config, found->second.use, found->second.columns);
    return *columns;
  };
}

}  // namespace c3po
