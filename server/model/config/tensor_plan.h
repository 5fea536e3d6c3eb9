#ifndef C3PO_SERVER_MODEL_CONFIG_TENSOR_PLAN_H_
#define C3PO_SERVER_MODEL_CONFIG_TENSOR_PLAN_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/model/config/model_config.h"
#include "server/model/config/weight_use.h"
#include "server/weights/checkpoint.h"

namespace c3po {

// Hugging Face's tensor names of one MoE layer, relative to "model.layers.N."; null: the layer has none.
struct TensorNames {
  const char* router;
  // Followed by the expert's index; where it is null, gate is [E, 2f, d] with up, down [E, d, f].
  const char* expert_prefix;
  const char* gate;
  const char* up;
  const char* down;
  const char* shared_prefix;
};
// Of a dense layer's network and a shared expert, in every family.
inline constexpr TensorNames kGatedNetwork = {
    nullptr, nullptr, ".gate_proj.weight", ".up_proj.weight", ".down_proj.weight", nullptr};

// A family's names have changed: transformers up to 4.57 stores the experts one by one (Granite: together) and 5.x may
// store them together, with the router renamed in some families; of a GGUF file they are shown one by one. Chooses, for
// the router and for the experts, the first form of which `has` knows a tensor; the oldest where it knows none.
TensorNames ChooseNames(ModelConfig::Family family, absl::FunctionRef<bool(const std::string&)> has);

enum class TensorPart { kEmbedding, kHead, kNorm, kAttention, kRouter, kExpert, kShared, kDense };

struct PlannedTensor {
  std::string name;
  std::vector<int64_t> shape;
  TensorPart part = TensorPart::kNorm;  // kShared: of the expert beside the routed ones; kDense: of a layer without
  // Of its first entry. Matrices of three dimensions follow each other below it, `stride` rows apart, or as many as
  // they have where it is 0; but those of kExpertsDown beside it.
  WeightUse use;
  int64_t stride = 0;
};

// Calls `visit` for every tensor that a checkpoint of this architecture holds, under the names that `has` knows, until
// it fails, and returns its status. A configuration may ask for 2^40 of them: `visit` has to fail at one that is not
// there.
absl::Status VisitTensors(const ModelConfig& config, absl::FunctionRef<bool(const std::string&)> has,
                          absl::FunctionRef<absl::Status(const PlannedTensor&)> visit);

// Likewise under the names of a folder whose experts are stored one by one, as transformers up to 4.57 has them; of
// Granite, whose classes store them together, those that c3pod reads.
absl::Status VisitSeparateTensors(const ModelConfig& config,
                                  absl::FunctionRef<absl::Status(const PlannedTensor&)> visit);

// InvalidArgument names the tensor: weights are not stored in this type.
absl::Status CheckWeightType(const std::string& name, DType type);
// Of the embedding; where that is packed, of the final norm. NotFound: it is missing; InvalidArgument as above.
absl::StatusOr<DType> StoredType(const Checkpoint& checkpoint);

// The configuration of a checkpoint: its config.json, and what its tensors add. Where config.json ties the LM head to
// the embeddings and a head of another content is stored, that head counts, as in transformers from 5.0 on:
// tied_embeddings is false then. Equal bytes are the same head; finding out reads both. Errors are those of
// ModelConfig::Parse.
absl::StatusOr<ModelConfig> ReadConfig(const Checkpoint& checkpoint);

// Whether a checkpoint holds exactly the tensors of its architecture, in a dtype of weights (F32, BF16, F16, F8_E4M3):
// to be asked before any memory is taken that config.json sizes. Time and memory are bounded by the tensors that are
// there. `config` is that of ReadConfig. NotFound names a missing tensor; InvalidArgument one of a wrong shape or
// dtype, or one that the architecture does not have: nobody would read it, and an option would be silently ignored. Two
// kinds of tensors need not be read: a tied head's copy, and tables of rotary frequencies (inv_freq), which must be
// those of config.json within 1 %.
absl::Status CheckTensors(const Checkpoint& checkpoint, const ModelConfig& config);

// A model folder (Checkpoint::Open) or a GGUF file (OpenGgufModel), and its errors. Of a folder with a
// quantization_config that is read, quantized tensors are joined (Checkpoint::Join).
absl::StatusOr<std::unique_ptr<Checkpoint>> OpenCheckpoint(const std::string& path);

// Whether loading would find config.json and the headers of the weights right, and its errors where not. Of a GGUF file
// likewise.
absl::Status CheckFolder(const std::string& folder);

// Elements, counted from the configuration alone; INT64_MAX where that overflows. One tied matrix counts once.
struct ParameterCounts {
  int64_t total = 0;
  // Of these what one token's forward pass reads: all but the routed experts that its router does not choose.
  int64_t active = 0;
  // Per part, all layers together.
  int64_t embedding = 0, head = 0, attention = 0, routed_experts = 0, shared_experts = 0, dense_layers = 0,
          routers_and_norms = 0;
};
ParameterCounts CountParameters(const ModelConfig& config);

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_CONFIG_TENSOR_PLAN_H_
