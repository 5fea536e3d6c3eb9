// A model from its folder. Apart from the rest of MoeModel, so that a program with a backend of its own links neither
// libtorch nor the other backends.

#include <exception>
#include <future>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/sha256.h"
#include "index/base/status_macros.h"
#include "server/compute/device.h"
#include "server/model/config/generation_config.h"
#include "server/model/config/tensor_plan.h"
#include "server/model/forward_step.h"
#include "server/model/moe_model.h"
#include "server/weights/model_folder.h"

namespace c3po {
namespace {

// A model that is quantized at load computes other numbers than its folder's, so what was made with the one is not
// applied to the other.
std::string DigestOf(std::string files, const WeightPlacement& placement) {
  if (placement.format == WeightFormat::kElements || placement.as_stored) return files;
  Sha256 sha256;
  sha256.Update(absl::StrCat(files, " ", placement.weights(), " groups of 32, least squares, attention in 8 bits\n"));
  return sha256.HexDigest();
}

}  // namespace

absl::StatusOr<std::unique_ptr<MoeModel>> MoeModel::Load(const MoeModelOptions& options) {
  C3PO_ASSIGN_OR_RETURN(const std::shared_ptr<const Checkpoint> checkpoint, OpenCheckpoint(options.folder));
  C3PO_ASSIGN_OR_RETURN(ModelConfig config, ReadConfig(*checkpoint));
  C3PO_ASSIGN_OR_RETURN(const GenerationConfig generation,
                        GenerationConfig::Read(options.folder, config.vocabulary_size));
  C3PO_ASSIGN_OR_RETURN(const WeightPlacement placement,
                        ChoosePlacement(*checkpoint, {options.device, options.dtype, options.arithmetic,
                                                      options.weights, options.kv_cache_dtype}));
  // What does not fit is said at once: the digest is taken beside the loading, so that the files are read once, and is
  // waited for whatever comes of it.
  C3PO_ASSIGN_OR_RETURN(const ModelWeights weights, ViewWeights(checkpoint, config));
  std::future<std::string> digest = std::async(std::launch::async, [&checkpoint] { return checkpoint->Digest(); });
  C3PO_ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend, MakeBackend(config, weights, placement, options.progress));
  try {
    auto model = OnBackend(std::move(config), std::move(backend), options.neighbor_cache_bytes);
    ModelShape& shape = model->shape_;
    shape.name = NameOfFolder(options.folder);
    shape.eos_token_ids = EndTokens(model->config_.eos_token_ids, generation);
    shape.device = options.device;
    shape.arithmetic = placement.arithmetic();
    shape.weights = placement.weights();
    shape.digest = DigestOf(digest.get(), placement);
    return model;
  } catch (const std::exception& error) {
    return absl::ResourceExhaustedError(absl::StrCat("loading ", options.folder, ": ", error.what()));
  }
}

}  // namespace c3po
