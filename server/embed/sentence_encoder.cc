#include "server/embed/sentence_encoder.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "index/base/device_failure.h"
#include "index/base/durable_file.h"
#include "index/base/sha256.h"
#include "index/base/status_macros.h"
#include "server/embed/bert_config.h"
#include "server/types/status_details.h"
#include "server/weights/checkpoint.h"
#include "server/weights/model_folder.h"
#include "server/weights/stored_rows.h"

namespace c3po {
namespace {

constexpr int64_t kTokenizerBytesMax = 256 << 20;
// Texts run together in batches of at most this many tokens, or of one text. Bounds the memory of a forward pass, 3 MB
// for MiniLM's intermediate width, and how long another caller waits for its turn in the queue on a CPU of few cores.
constexpr size_t kBatchTokensMax = 512;

struct LinearWeights {
  at::Tensor weight;  // [out, in]
  at::Tensor bias;    // [out]
};
struct NormWeights {
  at::Tensor weight;  // [hidden]
  at::Tensor bias;    // [hidden]
};
struct EncoderLayer {
  LinearWeights query_key_value;  // [3 hidden, hidden]
  LinearWeights attention_output;
  NormWeights attention_norm;
  LinearWeights intermediate;
  LinearWeights output;
  NormWeights output_norm;
};

// Copies tensors of a checkpoint to float32 on the queue's device, each checked against the shape that the config
// implies.
class WeightReader {
 public:
  // `matrices`: the type that the layers' matrices are rounded to.
  WeightReader(const Checkpoint& checkpoint, DeviceQueue& queue, at::ScalarType matrices)
      : checkpoint_(checkpoint),
        queue_(queue),
        matrices_(matrices),
        // A BertModel saved as part of a BertFor... carries the prefix.
        prefix_(checkpoint.Has("embeddings.word_embeddings.weight") ? "" : "bert.") {}

  absl::StatusOr<std::unique_ptr<const StoredRows>> ReadRows(absl::string_view name, std::vector<int64_t> shape) const {
    C3PO_RETURN_IF_ERROR(Find(name, shape).status());
    return StoredRows::Open(checkpoint_, absl::StrCat(prefix_, name));
  }
  absl::StatusOr<at::Tensor> Read(absl::string_view name, std::vector<int64_t> shape) const {
    C3PO_ASSIGN_OR_RETURN(const TensorView view, Find(name, shape));
    at::ScalarType type;
    switch (view.dtype) {
      case DType::kF32:
        type = at::kFloat;
        break;
      case DType::kF16:
        type = at::kHalf;
        break;
      case DType::kBF16:
        type = at::kBFloat16;
        break;
      default:
        return absl::InvalidArgumentError(absl::StrCat(checkpoint_.folder(), ": tensor \"", prefix_, name, "\" is ",
                                                       DTypeName(view.dtype), "; F32, F16 and BF16 are supported"));
    }
    at::Tensor stored = at::empty(shape, at::TensorOptions().dtype(type));
    std::memcpy(stored.mutable_data_ptr(), view.bytes.data(), view.bytes.size());
    return queue_.FromHost(stored.to(at::kFloat));
  }
  absl::StatusOr<LinearWeights> ReadLinear(const std::string& name, int64_t out, int64_t in) const {
    C3PO_ASSIGN_OR_RETURN(const at::Tensor weight, Read(name + ".weight", {out, in}));
    C3PO_ASSIGN_OR_RETURN(at::Tensor bias, Read(name + ".bias", {out}));
    return LinearWeights{weight.to(matrices_), std::move(bias)};
  }
  absl::StatusOr<NormWeights> ReadNorm(const std::string& name, int64_t hidden) const {
    C3PO_ASSIGN_OR_RETURN(at::Tensor weight, Read(name + ".weight", {hidden}));
    C3PO_ASSIGN_OR_RETURN(at::Tensor bias, Read(name + ".bias", {hidden}));
    return NormWeights{std::move(weight), std::move(bias)};
  }

 private:
  // A tensor of this shape.
  absl::StatusOr<TensorView> Find(absl::string_view name, const std::vector<int64_t>& shape) const {
    const std::string full_name = absl::StrCat(prefix_, name);
    C3PO_ASSIGN_OR_RETURN(TensorView view, checkpoint_.Find(full_name));
    if (view.shape == shape) return view;
    return absl::InvalidArgumentError(absl::StrCat(checkpoint_.folder(), ": tensor \"", full_name, "\" has shape ",
                                                   ShapeString(view.shape), ", config.json implies ",
                                                   ShapeString(shape)));
  }

  const Checkpoint& checkpoint_;
  DeviceQueue& queue_;
  const at::ScalarType matrices_;
  const std::string prefix_;
};

// A GPU's error, but for want of memory, is the model's as well: it computes there.
absl::Status LibtorchError(absl::string_view what, const std::exception& error) {
  const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  const char* const text = torch_error ? torch_error->what_without_backtrace() : error.what();
  if (dynamic_cast<const c10::AcceleratorError*>(&error) == nullptr) {
    return FailureOfDeviceOr(absl::InternalError(absl::StrCat(what, ": ", text)));
  }
  NoteDeviceFailure(absl::StrCat("embedding: ", text));
  return DeviceFailure();
}

}  // namespace

struct SentenceEncoder::Model {
  BertConfig config;
  std::shared_ptr<DeviceQueue> queue;
  Encode encode;
  std::string digest;
  std::string name;

  std::unique_ptr<const StoredRows> word_embeddings;  // [vocabulary, hidden], half of all weights: stays in its file
  at::Tensor position_embeddings;                     // [positions, hidden], with the embedding of token type 0 added
  NormWeights embedding_norm;
  std::vector<EncoderLayer> layers;

  absl::Status ReadWeights(const Checkpoint& checkpoint, Weights weights);
  absl::StatusOr<std::vector<int32_t>> Tokens(const std::string& text) const;
  // The texts' tokens one after the other, without padding: their words' embeddings [rows, hidden] and positions
  // [rows], int64; a text has `lengths` rows. Returns the last states [rows, hidden]. Like ReadWeights, within the
  // queue's Run.
  at::Tensor Forward(const at::Tensor& words, const at::Tensor& positions, absl::Span<const int64_t> lengths) const;
  at::Tensor Apply(const LinearWeights& linear, const at::Tensor& x) const {
    return queue->Linear(x, linear.weight, linear.bias);
  }
  at::Tensor Norm(const NormWeights& norm, const at::Tensor& x) const {
    return at::layer_norm(x, {config.hidden}, norm.weight, norm.bias, config.norm_eps);
  }
  // Embeds the texts [begin, end) into rows, within the queue's Run.
  absl::Status EmbedBatch(absl::Span<const std::vector<int32_t>> tokens, size_t begin, size_t end,
                          std::vector<std::vector<float>>& rows) const;
};

absl::Status SentenceEncoder::Model::ReadWeights(const Checkpoint& checkpoint, Weights weights) {
  const WeightReader reader(checkpoint, *queue, weights == Weights::kBfloat16 ? at::kBFloat16 : at::kFloat);
  const int64_t hidden = config.hidden;
  C3PO_ASSIGN_OR_RETURN(word_embeddings,
                        reader.ReadRows("embeddings.word_embeddings.weight", {config.vocabulary, hidden}));
  C3PO_ASSIGN_OR_RETURN(position_embeddings,
                        reader.Read("embeddings.position_embeddings.weight", {config.positions, hidden}));
  C3PO_ASSIGN_OR_RETURN(const at::Tensor types,
                        reader.Read("embeddings.token_type_embeddings.weight", {config.token_types, hidden}));
  position_embeddings = position_embeddings.add(types.narrow(0, 0, 1));
  C3PO_ASSIGN_OR_RETURN(embedding_norm, reader.ReadNorm("embeddings.LayerNorm", hidden));
  for (int i = 0; i < config.layers; ++i) {
    const std::string prefix = absl::StrCat("encoder.layer.", i, ".");
    C3PO_ASSIGN_OR_RETURN(const LinearWeights query,
                          reader.ReadLinear(prefix + "attention.self.query", hidden, hidden));
    C3PO_ASSIGN_OR_RETURN(const LinearWeights key, reader.ReadLinear(prefix + "attention.self.key", hidden, hidden));
    C3PO_ASSIGN_OR_RETURN(const LinearWeights value,
                          reader.ReadLinear(prefix + "attention.self.value", hidden, hidden));
    EncoderLayer layer;
    layer.query_key_value = {at::cat({query.weight, key.weight, value.weight}),
                             at::cat({query.bias, key.bias, value.bias})};
    C3PO_ASSIGN_OR_RETURN(layer.attention_output, reader.ReadLinear(prefix + "attention.output.dense", hidden, hidden));
    C3PO_ASSIGN_OR_RETURN(layer.attention_norm, reader.ReadNorm(prefix + "attention.output.LayerNorm", hidden));
    C3PO_ASSIGN_OR_RETURN(layer.intermediate,
                          reader.ReadLinear(prefix + "intermediate.dense", config.intermediate, hidden));
    C3PO_ASSIGN_OR_RETURN(layer.output, reader.ReadLinear(prefix + "output.dense", hidden, config.intermediate));
    C3PO_ASSIGN_OR_RETURN(layer.output_norm, reader.ReadNorm(prefix + "output.LayerNorm", hidden));
    layers.push_back(std::move(layer));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> SentenceEncoder::Model::Tokens(const std::string& text) const {
  C3PO_ASSIGN_OR_RETURN(std::vector<int32_t> ids, encode(text));
  if (ids.empty()) return absl::InvalidArgumentError("no tokens");
  if (ids.size() > static_cast<size_t>(config.max_tokens)) {
    ids[config.max_tokens - 1] = ids.back();
    ids.resize(config.max_tokens);
  }
  for (int32_t id : ids) {
    if (id < 0 || id >= config.vocabulary) {
      return absl::InvalidArgumentError(
          absl::StrCat("token ", id, " is outside ", name, "'s vocabulary of ", config.vocabulary));
    }
  }
  return ids;
}

at::Tensor SentenceEncoder::Model::Forward(const at::Tensor& words, const at::Tensor& positions,
                                           absl::Span<const int64_t> lengths) const {
  const int64_t rows = words.size(0), head = config.hidden / config.heads;
  at::Tensor h = words.add(at::embedding(position_embeddings, positions));
  h = Norm(embedding_norm, h);
  for (const EncoderLayer& layer : layers) {
    // [rows, 3, heads, head] -> [3, heads, rows, head]
    const at::Tensor qkv = Apply(layer.query_key_value, h).view({rows, 3, config.heads, head}).permute({1, 2, 0, 3});
    const at::Tensor mixed = at::empty({rows, config.heads, head}, h.options());
    int64_t begin = 0;
    for (const int64_t length : lengths) {
      const at::Tensor own = qkv.narrow(2, begin, length).unsqueeze(1);
      mixed.narrow(0, begin, length)
          .copy_(at::scaled_dot_product_attention(own[0], own[1], own[2]).squeeze(0).transpose(0, 1));
      begin += length;
    }
    h = Norm(layer.attention_norm, h.add(Apply(layer.attention_output, mixed.view({rows, config.hidden}))));
    h = Norm(layer.output_norm, h.add(Apply(layer.output, at::gelu(Apply(layer.intermediate, h), "none"))));
  }
  return h;
}

absl::Status SentenceEncoder::Model::EmbedBatch(absl::Span<const std::vector<int32_t>> tokens, size_t begin, size_t end,
                                                std::vector<std::vector<float>>& rows) const {
  std::vector<int64_t> lengths, ids, positions;
  for (size_t i = begin; i < end; ++i) {
    lengths.push_back(static_cast<int64_t>(tokens[i].size()));
    ids.insert(ids.end(), tokens[i].begin(), tokens[i].end());
    for (int64_t position = 0; position < lengths.back(); ++position) positions.push_back(position);
  }
  const auto count = static_cast<int64_t>(ids.size());
  const at::Tensor words = at::empty({count, config.hidden}, at::TensorOptions().dtype(at::kFloat));
  C3PO_RETURN_IF_ERROR(word_embeddings->Read(ids, words.mutable_data_ptr<float>()));
  const at::Tensor places = at::empty({count}, at::TensorOptions().dtype(at::kLong));
  std::copy(positions.begin(), positions.end(), places.mutable_data_ptr<int64_t>());
  const at::Tensor states = queue->ToHost(Forward(queue->FromHost(words), queue->FromHost(places), lengths));
  const float* state = states.const_data_ptr<float>();
  std::vector<double> sum(config.hidden);
  for (size_t i = begin; i < end; ++i) {
    std::fill(sum.begin(), sum.end(), 0.0);
    for (int64_t token = 0; token < lengths[i - begin]; ++token, state += config.hidden) {
      for (int j = 0; j < config.hidden; ++j) sum[j] += state[j];
    }
    double square = 0;
    for (const double x : sum) square += x * x;
    const double length = std::sqrt(square);  // The mean's, but for a factor that goes out of the row.
    if (!std::isfinite(length) || length == 0) {
      return NotANumberError(
          absl::StrCat(name, ": the embedding of texts[", i, "] is zero or not finite: are the weights damaged?"));
    }
    rows[i].resize(config.hidden);
    for (int j = 0; j < config.hidden; ++j) rows[i][j] = static_cast<float>(sum[j] / length);
  }
  return absl::OkStatus();
}

int64_t SentenceEncoder::weight_bytes() const {
  int64_t bytes = 0;
  const auto add = [&bytes](std::initializer_list<at::Tensor> tensors) {
    for (const at::Tensor& tensor : tensors) bytes += static_cast<int64_t>(tensor.nbytes());
  };
  add({model_->position_embeddings, model_->embedding_norm.weight, model_->embedding_norm.bias});
  for (const EncoderLayer& layer : model_->layers) {
    for (const LinearWeights* linear :
         {&layer.query_key_value, &layer.attention_output, &layer.intermediate, &layer.output}) {
      add({linear->weight, linear->bias});
    }
    for (const NormWeights* norm : {&layer.attention_norm, &layer.output_norm}) add({norm->weight, norm->bias});
  }
  return bytes;
}

SentenceEncoder::SentenceEncoder(std::unique_ptr<const Model> model) : model_(std::move(model)) {}
SentenceEncoder::~SentenceEncoder() = default;

absl::StatusOr<std::unique_ptr<SentenceEncoder>> SentenceEncoder::Load(const std::string& folder,
                                                                       std::shared_ptr<DeviceQueue> queue,
                                                                       Encode encode, Weights weights) {
  auto model = std::make_unique<Model>();
  C3PO_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(folder));
  C3PO_ASSIGN_OR_RETURN(model->config, ReadBertConfig(folder, checkpoint->config_json()));
  absl::StatusOr<std::string> tokenizer = ReadWholeFile(folder + "/tokenizer.json", kTokenizerBytesMax);
  if (absl::IsNotFound(tokenizer.status())) tokenizer = "";
  C3PO_RETURN_IF_ERROR(tokenizer.status());
  model->digest = Sha256::HexOf(absl::StrCat("sentence_encoder", weights == Weights::kBfloat16 ? " bfloat16\n" : "\n",
                                             checkpoint->Digest(), "\n", model->config.max_tokens, "\n", *tokenizer));
  model->name = NameOfFolder(folder);
  model->encode = std::move(encode);
  model->queue = std::move(queue);
  absl::Status read;
  try {
    model->queue->Run([&] { read = model->ReadWeights(*checkpoint, weights); });
  } catch (const std::exception& error) {
    return LibtorchError(folder, error);
  }
  C3PO_RETURN_IF_ERROR(read);
  return std::unique_ptr<SentenceEncoder>(new SentenceEncoder(std::move(model)));
}

absl::StatusOr<std::vector<std::vector<float>>> SentenceEncoder::Embed(absl::Span<const std::string> texts) {
  std::vector<std::vector<int32_t>> tokens;
  tokens.reserve(texts.size());
  for (const std::string& text : texts) {
    absl::StatusOr<std::vector<int32_t>> ids = model_->Tokens(text);
    if (!ids.ok()) {
      return absl::Status(ids.status().code(), absl::StrCat("texts[", tokens.size(), "]: ", ids.status().message()));
    }
    tokens.push_back(*std::move(ids));
  }
  std::vector<std::vector<float>> rows(texts.size());
  try {
    for (size_t begin = 0, end = 0; begin < tokens.size(); begin = end) {
      size_t rows_taken = 0;
      do {
        rows_taken += tokens[end++].size();
      } while (end < tokens.size() && rows_taken + tokens[end].size() <= kBatchTokensMax);
      absl::Status embedded;  // Each batch is one turn in the queue, so that a short text need not wait for many.
      model_->queue->Run([&] { embedded = model_->EmbedBatch(tokens, begin, end, rows); });
      C3PO_RETURN_IF_ERROR(embedded);
    }
  } catch (const std::exception& error) {
    return LibtorchError(model_->name, error);
  }
  return rows;
}

int SentenceEncoder::dimension() const { return model_->config.hidden; }
std::string SentenceEncoder::digest() const { return model_->digest; }
std::string SentenceEncoder::name() const { return model_->name; }
int SentenceEncoder::max_tokens() const { return model_->config.max_tokens; }

}  // namespace c3po
