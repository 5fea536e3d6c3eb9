#include "server/inspect/model_card.h"

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "index/base/durable_file.h"
#include "index/base/status_macros.h"
#include "server/pipeline/optimization_settings.h"
#include "server/text/chat_renderer.h"
#include "server/text/json_field.h"
#include "server/text/tokenizer.h"
#include "server/types/model_runner.h"
#include "server/weights/checkpoint.h"
#include "server/weights/gguf_parts.h"
#include "server/weights/model_folder.h"
#include "server/weights/packed_tensors.h"

namespace c3po {
namespace {

// One of the types that weights and caches are held in.
struct HeldType {
  const char* name;
  int64_t bytes;
};
constexpr HeldType kHeldTypes[] = {{"float32", 4}, {"bfloat16", 2}};
constexpr int64_t kPositions = 1000;
constexpr int64_t kQuantizedGroup = 32, kScaleBytes = 2;

void AddProblem(const absl::Status& status, ModelCard& card) {
  if (!status.ok()) card.problems.emplace_back(status.message());
}

absl::Status ReadConfigFile(ModelCard& card) {
  std::string path = card.folder + "/config.json", text;
  if (IsGgufPath(card.folder)) {
    C3PO_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint, OpenCheckpoint(card.folder));
    path = checkpoint->config_path();
    text = checkpoint->config_json();
  } else {
    C3PO_ASSIGN_OR_RETURN(text, ReadWholeFile(path, kConfigBytesMax));
  }
  C3PO_ASSIGN_OR_RETURN(card.config, ModelConfig::Parse(text, path));
  const ModelConfig& config = *card.config;
  card.parameters = CountParameters(config);
  card.kv_elements = int64_t{config.layers} * config.kv_heads * (config.head_dim + config.value_dim);
  ModelShape shape;
  shape.moe_layers = static_cast<int>(config.moe_layers.size());
  shape.experts = config.experts;
  card.critical_layers = DefaultSettings(shape).critical_layers;
  return absl::OkStatus();
}

absl::Status ReadGenerationConfig(ModelCard& card) {
  if (!card.config) return absl::OkStatus();
  C3PO_ASSIGN_OR_RETURN(card.generation, GenerationConfig::Read(card.folder, card.config->vocabulary_size));
  if (!card.generation.left.empty()) {
    card.notes.push_back(
        absl::StrCat("generation_config.json: only eos_token_id is taken; a request says how to sample,"
                     " not ",
                     absl::StrJoin(card.generation.left, ", ")));
  }
  return absl::OkStatus();
}

// A packed matrix keeps its levels, and a scale for each 32 columns. An embedding gets 4 bits where any matrix has
// them, but 8 where it is the LM head too. All else is held in the type of `--dtype auto`.
absl::Status CountAsStored(const Checkpoint& checkpoint, ModelCard& card) {
  if (card.packed_weights.empty()) return absl::OkStatus();
  C3PO_ASSIGN_OR_RETURN(const DType plain, StoredType(checkpoint));
  const int64_t plain_bytes = plain == DType::kBF16 || plain == DType::kF8E4M3 ? 2 : 4;
  for (const std::string& name : checkpoint.names()) {
    C3PO_ASSIGN_OR_RETURN(const TensorView view, checkpoint.Find(name));
    const bool embedding = card.config && view.shape.size() == 2 && name == "model.embed_tokens.weight";
    if (!IsPackedType(view.dtype) && !embedding) {
      card.as_stored_bytes += view.elements() * plain_bytes;
      continue;
    }
    const int64_t groups = view.shape[0] * ((view.shape[1] + kQuantizedGroup - 1) / kQuantizedGroup);
    const bool narrow = embedding && !card.config->tied_embeddings && card.packed_weights.count("INT4") > 0;
    const int64_t level_bits = view.dtype == DType::kInt4 || narrow ? 4 : 8;
    card.as_stored_bytes += groups * (kQuantizedGroup * level_bits / 8 + kScaleBytes);
  }
  return absl::OkStatus();
}

absl::Status ReadWeights(ModelCard& card) {
  C3PO_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint, OpenCheckpoint(card.folder));
  for (const std::string& name : checkpoint->names()) {
    C3PO_ASSIGN_OR_RETURN(const TensorView view, checkpoint->Find(name));
    card.stored_bytes[std::string(DTypeName(view.dtype))] +=
        static_cast<int64_t>(view.bytes.size() + view.scales.size());
    ++card.tensors;
    if (IsPackedType(view.dtype)) card.packed_weights[std::string(DTypeName(view.dtype))] += view.elements();
  }
  C3PO_RETURN_IF_ERROR(CountAsStored(*checkpoint, card));
  if (!card.config) return absl::OkStatus();
  const bool tied = card.config->tied_embeddings;
  C3PO_ASSIGN_OR_RETURN(card.config, ReadConfig(*checkpoint));
  card.parameters = CountParameters(*card.config);
  if (tied && !card.config->tied_embeddings) {
    card.notes.push_back(
        "lm_head.weight differs from model.embed_tokens.weight: it is the LM head, although config.json says "
        "tie_word_embeddings");
  }
  return CheckTensors(*checkpoint, *card.config);
}

// An eos_token of the tokenizer that neither config.json nor generation_config.json lists does not end an answer.
absl::Status NoteEndToken(const Tokenizer& tokenizer, ModelCard& card) {
  const std::filesystem::path path = std::filesystem::path(card.folder) / "tokenizer_config.json";
  std::error_code ignored;
  if (!card.config || !std::filesystem::exists(path, ignored)) return absl::OkStatus();
  C3PO_ASSIGN_OR_RETURN(const JsonField config, JsonField::ReadFile(path.string()));
  const std::optional<JsonField> field = config.Find("eos_token");
  if (!field.has_value()) return absl::OkStatus();
  C3PO_ASSIGN_OR_RETURN(const std::string piece,
                        field->is_object() ? field->StringMember("content") : field->AsString());
  const std::optional<int32_t> id = tokenizer.TokenToId(piece);
  const std::vector<int32_t> ends = EndTokens(card.config->eos_token_ids, card.generation);
  if (id.has_value() && std::find(ends.begin(), ends.end(), *id) == ends.end()) {
    card.notes.push_back(absl::StrCat("the tokenizer's eos_token \"", piece, "\", id ", *id,
                                      ", does not end an answer: neither config.json nor generation_config.json has it"
                                      " as eos_token_id"));
  }
  return absl::OkStatus();
}

absl::Status ReadTokenizer(ModelCard& card) {
  C3PO_ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::LoadFolder(card.folder));
  if (card.config && tokenizer->vocabulary_size() > card.config->vocabulary_size) {
    card.notes.push_back(absl::StrCat("the tokenizer has ids up to ", tokenizer->vocabulary_size() - 1,
                                      ", the model a vocabulary of ", card.config->vocabulary_size,
                                      ": prompts with the ids above it are refused"));
  }
  return NoteEndToken(*tokenizer, card);
}

std::string Scaled(int64_t number, const char* const (&units)[4]) {
  double scaled = static_cast<double>(number);
  int unit = 0;
  while (unit < 3 && scaled >= 999.5) scaled /= 1000, ++unit;
  return absl::StrFormat("%.*f%s", unit == 0 ? 0 : 2, scaled, units[unit]);
}
std::string Bytes(int64_t bytes) { return Scaled(bytes, {" B", " kB", " MB", " GB"}); }
std::string Count(int64_t count) { return Scaled(count, {"", " thousand", " million", " billion"}); }

// A hostile config.json asks for more than 2^63 bytes.
int64_t SaturatingTimes(int64_t a, int64_t b) {
  int64_t product;
  return __builtin_mul_overflow(a, b, &product) ? INT64_MAX : product;
}
int64_t WeightBytes(const ModelCard& card, const HeldType& type) {
  return SaturatingTimes(card.parameters.total, type.bytes);
}
int64_t KvBytes(const ModelCard& card, int64_t element_bytes) {
  return SaturatingTimes(card.kv_elements, kPositions * element_bytes);
}

// What is quantized, at how many bits a weight; the rest is held in bfloat16. Attention and the LM head have 8 bits in
// either, and so has a tied embedding, which is the LM head too. Experts whose width is no multiple of 32 take some
// more.
struct QuantizedType {
  const char* name;
  double bits;
};
constexpr double kEightBits = 8.5;
constexpr QuantizedType kQuantizedTypes[] = {{"int8", kEightBits}, {"int4", 4.5}};

int64_t QuantizedBytes(const ModelCard& card, const QuantizedType& type) {
  const ParameterCounts& counts = card.parameters;
  const bool tied = card.config->tied_embeddings;
  const auto share = [](int64_t count, double bits) { return static_cast<double>(count) * bits / 8; };
  const double bytes = share(counts.routed_experts, type.bits) + share(counts.shared_experts, type.bits) +
                       share(counts.dense_layers, type.bits) + share(counts.attention, kEightBits) +
                       share(counts.embedding, tied ? kEightBits : type.bits) + share(counts.head, kEightBits) +
                       share(counts.routers_and_norms, 16);
  return bytes < 9e18 ? static_cast<int64_t>(bytes) : INT64_MAX;
}

void AddLine(absl::string_view name, absl::string_view value, std::string& text) {
  absl::StrAppendFormat(&text, "%-15s %s\n", name, value);
}

void AddConfigLines(const ModelCard& card, std::string& text) {
  const ModelConfig& config = *card.config;
  AddLine("family", config.architecture, text);
  AddLine("layers",
          absl::StrCat(config.layers, ", ", config.moe_layers.size(), " of them with ", config.experts, " experts, ",
                       config.experts_per_token, " active per token",
                       config.shared_intermediate_size > 0 ? ", beside a shared expert" : ""),
          text);
  AddLine("critical layers",
          absl::StrCat(absl::StrJoin(card.critical_layers, ", "), " of MoE layers 0 to ", config.moe_layers.size() - 1,
                       ", by default"),
          text);
  AddLine("hidden size", absl::StrCat(config.hidden_size), text);
  AddLine("vocabulary", absl::StrCat(config.vocabulary_size), text);
  AddLine("context", absl::StrCat(config.context_window, " tokens"), text);
  const std::vector<int32_t> ends = EndTokens(config.eos_token_ids, card.generation);
  AddLine("end tokens", ends.empty() ? "none" : absl::StrJoin(ends, ", "), text);
  const ParameterCounts& counts = card.parameters;
  AddLine("parameters", absl::StrCat(Count(counts.total), ", ", Count(counts.active), " active per token"), text);
  const std::pair<const char*, int64_t> parts[] = {{"routed experts", counts.routed_experts},
                                                   {"shared experts", counts.shared_experts},
                                                   {"dense layers", counts.dense_layers},
                                                   {"attention", counts.attention},
                                                   {"embedding", counts.embedding},
                                                   {"LM head", counts.head},
                                                   {"routers, norms", counts.routers_and_norms}};
  for (const auto& [name, count] : parts) {
    if (count > 0) AddLine("", absl::StrFormat("%-15s %s", name, Count(count)), text);
  }
  for (const HeldType& type : kHeldTypes) {
    AddLine(absl::StrCat("in ", type.name),
            absl::StrCat("weights ", Bytes(WeightBytes(card, type)), ", KV cache ", Bytes(KvBytes(card, type.bytes)),
                         " per 1,000 positions"),
            text);
  }
  if (!card.packed_weights.empty()) {
    std::vector<std::string> parts;
    for (const auto& [dtype, count] : card.packed_weights) parts.push_back(absl::StrCat(Count(count), " in ", dtype));
    AddLine("quantized", absl::StrCat(absl::StrJoin(parts, ", "), ", the rest as it is"), text);
    AddLine("as stored", absl::StrCat("weights ", Bytes(card.as_stored_bytes), " on the CPU, by --weights auto"), text);
  } else {
    for (const QuantizedType& type : kQuantizedTypes) {
      AddLine(absl::StrCat("in ", type.name),
              absl::StrCat("weights ", Bytes(QuantizedBytes(card, type)), " on the CPU, by --weights ", type.name),
              text);
    }
  }
  AddLine("", "on the CPU --kv-cache-dtype keeps the KV cache in either, whatever the weights", text);
}

// A template that is not of a known format is compiled here as c3pod would, by the Python that c3pod takes by default.
void ReadChat(ModelCard& card) {
  auto templates = ChatTemplates::Read(ChatTemplates::ConfigPath(card.folder));
  if (!templates.ok()) {
    card.notes.push_back(absl::StrCat("no chat, raw prompts only: ", templates.status().message()));
    return;
  }
  ChatRenderer chat(*std::move(templates), JinjaRenderer::Options());
  if (const absl::Status status = chat.Check(); !status.ok()) card.notes.emplace_back(status.message());
  card.chat = chat.RenderedBy();
}

}  // namespace

ModelCard InspectModel(const std::string& folder) {
  ModelCard card;
  card.folder = folder;
  card.name = NameOfFolder(folder);
  const absl::Status config = ReadConfigFile(card);
  AddProblem(config, card);
  AddProblem(ReadGenerationConfig(card), card);
  // A missing config.json would be told twice.
  if (const absl::Status weights = ReadWeights(card); weights.message() != config.message()) AddProblem(weights, card);
  AddProblem(ReadTokenizer(card), card);
  ReadChat(card);
  return card;
}

std::string CardText(const ModelCard& card) {
  std::string text;
  AddLine("folder", card.folder, text);
  AddLine("name", card.name, text);
  if (card.config) AddConfigLines(card, text);
  if (card.tensors > 0) {
    std::vector<std::string> dtypes;
    for (const auto& [dtype, bytes] : card.stored_bytes) dtypes.push_back(absl::StrCat(Bytes(bytes), " ", dtype));
    AddLine("on disk", absl::StrCat(card.tensors, " tensors: ", absl::StrJoin(dtypes, ", ")), text);
  }
  if (!card.chat.empty()) {
    AddLine("chat", card.chat == "jinja" ? "rendered by Jinja" : absl::StrCat(card.chat, ", a known format"), text);
  }
  for (const std::string& note : card.notes) AddLine("note", note, text);
  for (const std::string& problem : card.problems) AddLine("unsupported", problem, text);
  AddLine("loads", card.problems.empty() ? "yes" : "no", text);
  return text;
}

std::string CardJson(const ModelCard& card) {
  nlohmann::ordered_json json = {{"folder", card.folder},
                                 {"name", card.name},
                                 {"loads", card.problems.empty()},
                                 {"problems", card.problems},
                                 {"notes", card.notes},
                                 {"chat", card.chat},
                                 {"tensors", card.tensors},
                                 {"stored_bytes", card.stored_bytes}};
  if (card.config) {
    const ModelConfig& config = *card.config;
    const ParameterCounts& counts = card.parameters;
    json["family"] = config.architecture;
    json["layers"] = config.layers;
    json["moe_layers"] = config.moe_layers.size();
    json["experts"] = config.experts;
    json["experts_per_token"] = config.experts_per_token;
    json["critical_layers"] = card.critical_layers;
    json["hidden_size"] = config.hidden_size;
    json["vocabulary_size"] = config.vocabulary_size;
    json["context_window"] = config.context_window;
    json["eos_token_ids"] = EndTokens(config.eos_token_ids, card.generation);
    json["generation_config_left"] = card.generation.left;
    json["parameters"] = {{"total", counts.total},
                          {"active", counts.active},
                          {"routed_experts", counts.routed_experts},
                          {"shared_experts", counts.shared_experts},
                          {"dense_layers", counts.dense_layers},
                          {"attention", counts.attention},
                          {"embedding", counts.embedding},
                          {"lm_head", counts.head},
                          {"routers_and_norms", counts.routers_and_norms}};
    for (const HeldType& type : kHeldTypes) {
      json["memory_bytes"][type.name] = {{"weights", WeightBytes(card, type)},
                                         {"kv_per_1000_positions", KvBytes(card, type.bytes)}};
    }
    if (!card.packed_weights.empty()) {
      json["packed_weights"] = card.packed_weights;
      json["memory_bytes"]["as_stored"] = {{"weights", card.as_stored_bytes}};
    }
    for (const QuantizedType& type : kQuantizedTypes) {
      if (!card.packed_weights.empty()) break;
      json["memory_bytes"][type.name] = {{"weights", QuantizedBytes(card, type)}};
    }
  }
  // A folder's name need not be UTF-8.
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

int InspectMain(int argc, char** argv) {
  std::vector<std::string> models;
  std::string revision;
  bool json = false, wrong = false;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--json") {
      json = true;
    } else if (argument == "--revision" && i + 1 < argc) {
      revision = argv[++i];
    } else if (argument.substr(0, 1) == "-") {
      wrong = true;
    } else {
      models.push_back(argument);
    }
  }
  if (wrong || models.size() != 1) {
    std::cerr << "usage: c3pod inspect FOLDER|FILE.gguf|ORG/NAME [--revision REV] [--json]\n";
    return 2;
  }
  const absl::StatusOr<ModelFolder> found = FindModelFolder({"--model", models.front(), "--revision", revision, true});
  ModelCard card;
  if (found.ok()) {
    card = InspectModel(found->path);
  } else {
    card.folder = card.name = models.front();
    AddProblem(found.status(), card);
  }
  std::cout << (json ? CardJson(card) : CardText(card)) << std::flush;
  return card.problems.empty() && std::cout.good() ? 0 : 1;
}

}  // namespace c3po
