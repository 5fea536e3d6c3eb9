#include "server/model/config/model_config.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "server/model/config/quantization_config.h"

namespace c3po {
namespace {

using Json = nlohmann::json;

Json ConfigOf(const std::string& model) {
  std::ifstream file(std::string(C3PO_TESTDATA_DIR) + "/model/" + model + "/config.json");
  return Json::parse(file);
}

absl::StatusOr<ModelConfig> Parse(const Json& json) { return ModelConfig::Parse(json.dump(), "config.json"); }

struct Edit {
  std::string model;
  std::string field;
  Json value;
  std::string named;  // what the error must name; the field itself where empty
};

void PrintTo(const Edit& edit, std::ostream* out) { *out << edit.model << " " << edit.field << " " << edit.value; }

class RefusedOption : public testing::TestWithParam<Edit> {};

TEST_P(RefusedOption, IsNamedInTheError) {
  const Edit& edit = GetParam();
  Json json = ConfigOf(edit.model);
  ASSERT_TRUE(Parse(json).ok()) << Parse(json).status();
  json[edit.field] = edit.value;
  const absl::Status status = Parse(json).status();
  EXPECT_FALSE(status.ok());
  const std::string named = edit.named.empty() ? edit.field : edit.named;
  EXPECT_NE(std::string(status.message()).find(named), std::string::npos) << status;
  EXPECT_NE(std::string(status.message()).find("config.json"), std::string::npos) << status;
}

std::vector<Edit> RefusedOptions() {
  return {
      {"olmoe_tiny", "hidden_act", "gelu", ""},
      {"olmoe_tiny", "quantization_config", {{"quant_method", "fp8"}}, ""},
      {"olmoe_tiny", "n_shared_experts", 2, ""},
      {"olmoe_tiny", "clip_qkv", -1, ""},
      {"olmoe_tiny", "head_dim", 8, ""},
      {"olmoe_tiny", "is_causal", false, ""},
      {"olmoe_tiny", "model_type", "mixtral", ""},
      {"olmoe_tiny", "num_local_experts", 8, ""},
      {"olmoe_tiny", "per_layer_config", {{"0", {{"rms_norm_eps", 0.5}}}}, ""},
      {"olmoe_tiny", "rms_norm_eps", nullptr, ""},
      {"mixtral_tiny", "sliding_window", 32, ""},
      {"mixtral_tiny", "attention_bias", true, ""},
      {"mixtral_tiny", "clip_qkv", 8.0, ""},
      {"mixtral_tiny", "final_logit_softcapping", 30.0, ""},
      {"mixtral_tiny", "layer_types", Json::array({"sliding_attention"}), ""},
      {"mixtral_tiny", "rope_scaling", {{"rope_type", "dynamic"}, {"factor", 2.0}}, "rope_scaling.rope_type"},
      {"mixtral_tiny", "rope_scaling", {{"type", "linear"}, {"factor", 0.5}}, "rope_scaling.factor"},
      {"mixtral_tiny", "rope_scaling", {{"type", "linear"}, {"factor", 2.0}, {"twist", 1}}, "rope_scaling.twist"},
      {"mixtral_tiny", "rope_scaling", {{"type", "yarn"}, {"factor", 2.0}, {"mscale", 1.0}}, "rope_scaling.mscale"},
      {"mixtral_tiny",
       "rope_scaling",
       {{"type", "yarn"}, {"factor", 2.0}, {"truncate", false}},
       "rope_scaling.truncate"},
      {"mixtral_tiny", "rope_scaling", 7, ""},
      {"mixtral_tiny",
       "rope_scaling",
       {{"type", "linear"}, {"rope_type", "yarn"}, {"factor", 2.0}},
       "rope_type and type"},
      {"mixtral_tiny", "rope_scaling", {{"factor", 2.0}}, "rope_scaling.factor"},
      {"mixtral_tiny", "rope_scaling", {{"rope_type", "default"}, {"rope_theta", 5.0}}, "rope_scaling.rope_theta"},
      {"mixtral_tiny", "rope_parameters", {{"full_attention", {{"rope_type", "default"}}}}, "full_attention"},
      {"granite_moe_tiny", "rope_parameters", {{"rope_type", "default"}}, "rope_parameters and rope_scaling"},
      {"granite_moe_tiny", "original_max_position_embeddings", 32, "original_max_position_embeddings is 64"},
      {"granite_moe_tiny", "position_embedding_type", "nope", ""},
      {"mixtral_tiny", "partial_rotary_factor", 0.5, ""},
      {"mixtral_tiny", "eos_token_id", 260, ""},
      {"qwen2_moe_tiny", "mlp_only_layers", Json::array({0, 1, 2, 3, 4}), ""},
      {"qwen2_moe_tiny", "mlp_only_layers", "all", ""},
      {"qwen2_moe_tiny", "decoder_sparse_step", 9, ""},
      {"qwen2_moe_tiny", "shared_expert_intermediate_size", 0, ""},
      {"qwen3_moe_tiny", "head_dim", 7, ""},
      {"deepseek_tiny", "scoring_func", "sigmoid", ""},
      {"deepseek_tiny", "topk_method", "noaux_tc", ""},
      {"deepseek_tiny", "first_k_dense_replace", 5, ""},
      {"deepseek_tiny", "num_experts_per_tok", 17, ""},
      {"deepseek_v2_tiny", "topk_method", "noaux_tc", ""},
      {"deepseek_v2_tiny", "scoring_func", "sigmoid", ""},
      {"deepseek_v2_tiny", "n_group", 3, ""},
      {"deepseek_v2_tiny", "topk_group", 9, ""},
      {"deepseek_v2_tiny", "norm_topk_prob", true, ""},
      {"deepseek_v2_tiny", "mlp_bias", true, ""},
      {"deepseek_v2_tiny", "kv_lora_rank", nullptr, ""},
      {"deepseek_v2_tiny", "qk_rope_head_dim", 5, ""},
      {"granite_moe_tiny", "shared_intermediate_size", 8, ""},
      {"granite_moe_tiny", "embedding_multiplier", 0, ""},
  };
}

INSTANTIATE_TEST_SUITE_P(AllFamilies, RefusedOption, testing::ValuesIn(RefusedOptions()));

// As llm-compressor writes it, and `c3po model quantize`.
Json QuantizedConfigOf(const char* model) {
  Json json = ConfigOf(model);
  json["quantization_config"] = Json::parse(R"({"quant_method": "compressed-tensors", "format": "pack-quantized",
    "quantization_status": "compressed", "global_compression_ratio": null, "kv_cache_scheme": null, "sparsity_config": {},
    "transform_config": {}, "version": "0.20.1", "ignore": ["lm_head", "re:.*gate$"], "config_groups": {
    "group_0": {"targets": ["Linear"], "input_activations": null, "output_activations": null, "format": "pack-quantized",
     "weights": {"num_bits": 4, "type": "int", "symmetric": true, "strategy": "group", "group_size": 128, "dynamic": false,
      "actorder": "weight", "block_structure": null, "observer": "mse", "observer_kwargs": {}, "zp_dtype": null}},
    "group_1": {"targets": ["re:.*lm_head"],
     "weights": {"num_bits": 8, "type": "int", "symmetric": true, "strategy": "group", "group_size": 32}}}})");
  return json;
}

TEST(QuantizationConfig, NamesFormatsOfPackedWeights) {
  const Json json = QuantizedConfigOf("olmoe_tiny");
  EXPECT_TRUE(Parse(json).ok()) << Parse(json).status();
  const auto formats = PackedFormatsOf(json.dump(), "config.json");
  ASSERT_TRUE(formats.ok()) << formats.status();
  EXPECT_EQ(*formats, (std::vector<PackedFormat>{{4, 128}, {8, 32}}));
  EXPECT_EQ(PackedFormatsOf(ConfigOf("olmoe_tiny").dump(), "config.json")->size(), 0u);
}

TEST(QuantizationConfig, RefusesWhatIsNotReadByTheFieldsName) {
  const std::string root = "/quantization_config", weights = root + "/config_groups/group_0/weights";
  const struct {
    std::string pointer;
    Json value;
    std::string named;
  } cases[] = {
      {root + "/quant_method", "gptq", "quantization_config.quant_method \"gptq\""},
      {root + "/quant_method", "awq", "quant_method"},
      {root + "/quant_method", nullptr, "quant_method"},
      {root + "/format", "naive-quantized", "quantization_config.format"},
      {root + "/format", nullptr, "quantization_config.format"},
      {root + "/kv_cache_scheme", {{"num_bits", 8}}, "quantization_config.kv_cache_scheme"},
      {root + "/sparsity_config", {{"format", "sparse-bitmask"}}, "sparsity_config"},
      {root + "/modules_to_not_convert", {"gate"}, "quantization_config.modules_to_not_convert"},
      {root + "/config_groups", Json::object(), "config_groups"},
      {root + "/config_groups", 3, "config_groups"},
      {root + "/config_groups/group_1", Json::array({"Linear"}), "config_groups.group_1"},
      {root + "/config_groups/group_0/input_activations", {{"num_bits", 8}}, "group_0.input_activations"},
      {root + "/config_groups/group_0/output_activations", {{"num_bits", 8}}, "group_0.output_activations"},
      {root + "/config_groups/group_0/format", "int-quantized", "group_0.format"},
      {root + "/config_groups/group_0/weights", nullptr, "group_0.weights"},
      {root + "/config_groups/group_0/more", 1, "group_0.more"},
      {weights + "/num_bits", 3, "group_0.weights.num_bits"},
      {weights + "/type", "float", "group_0.weights.type"},
      {weights + "/symmetric", false, "group_0.weights.symmetric"},
      {weights + "/strategy", "channel", "group_0.weights.strategy"},
      {weights + "/group_size", 8, "group_0.weights.group_size"},
      {weights + "/group_size", 48, "group_0.weights.group_size"},
      {weights + "/group_size", nullptr, "group_0.weights.group_size"},
      {weights + "/group_size", -1, "group_0.weights.group_size"},
      {weights + "/dynamic", true, "group_0.weights.dynamic"},
      {weights + "/actorder", "group", "group_0.weights.actorder"},
      {weights + "/block_structure", {128, 128}, "group_0.weights.block_structure"},
      {weights + "/zero_point", true, "group_0.weights.zero_point"},
  };
  for (const auto& [pointer, value, named] : cases) {
    Json json = QuantizedConfigOf("olmoe_tiny");
    json[Json::json_pointer(pointer)] = value;
    const std::string message(Parse(json).status().message());
    EXPECT_NE(message.find(named), std::string::npos) << pointer << " " << value << ": " << message;
    EXPECT_NE(message.find("config.json"), std::string::npos) << message;
    EXPECT_FALSE(PackedFormatsOf(json.dump(), "config.json").ok());
  }
}

TEST(ModelConfig, TakesOptionsOfOthersAtTheValueThatChangesNothing) {
  Json json = ConfigOf("mixtral_tiny");
  json["attention_bias"] = false;
  json["clip_qkv"] = nullptr;
  json["sliding_window"] = json["max_position_embeddings"];  // Never reached.
  json["layer_types"] = Json::array({"full_attention", "full_attention", "full_attention", "full_attention"});
  json["rope_scaling"] = {{"rope_type", "default"}};
  json["scoring_func"] = "softmax";
  EXPECT_TRUE(Parse(json).ok()) << Parse(json).status();
}

TEST(ModelConfig, LooksAtASlidingWindowOnlyWhereItIsSwitchedOn) {
  Json json = ConfigOf("qwen2_moe_tiny");
  json["sliding_window"] = 32;
  json["use_sliding_window"] = false;
  EXPECT_TRUE(Parse(json).ok()) << Parse(json).status();
  json["use_sliding_window"] = true;
  EXPECT_NE(Parse(json).status().message().find("sliding_window"), std::string::npos) << Parse(json).status();
}

// The switch is Qwen's: Mixtral's code does not look at it. Qwen's is off by default.
TEST(ModelConfig, KnowsWhoseSlidingWindowHasASwitch) {
  Json mixtral = ConfigOf("mixtral_tiny");
  mixtral["sliding_window"] = 32;
  mixtral["use_sliding_window"] = false;
  EXPECT_NE(Parse(mixtral).status().message().find("sliding_window"), std::string::npos) << Parse(mixtral).status();
  Json qwen = ConfigOf("qwen3_moe_tiny");
  qwen.erase("use_sliding_window");
  qwen["sliding_window"] = 32;
  EXPECT_TRUE(Parse(qwen).ok()) << Parse(qwen).status();
}

// DeepSeek's code divides weights by their sum for more than one expert only.
TEST(ModelConfig, DoesNotNormalizeASingleExpertsWeight) {
  for (const char* model : {"deepseek_tiny", "deepseek_v2_tiny", "deepseek_v2_lite_tiny"}) {
    Json json = ConfigOf(model);
    json["norm_topk_prob"] = true;
    json["num_experts_per_tok"] = 1;
    const auto config = Parse(json);
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_FALSE(config->norm_topk_prob);
  }
  Json json = ConfigOf("deepseek_tiny");
  json["norm_topk_prob"] = true;
  EXPECT_TRUE(Parse(json)->norm_topk_prob);
}

// Transformers 5.24 saves Qwen3-MoE so, and reads the other families' counts under either name.
TEST(ModelConfig, ReadsTheNumberOfExpertsUnderEveryNameOfTheFamily) {
  const struct {
    const char *model, *own, *other;
  } kNames[] = {{"olmoe_tiny", "num_experts", "num_local_experts"},
                {"mixtral_tiny", "num_local_experts", "num_experts"},
                {"qwen3_moe_tiny", "num_experts", "num_local_experts"},
                {"deepseek_v2_tiny", "n_routed_experts", "num_experts"}};
  for (const auto& [model, own, other] : kNames) {
    Json json = ConfigOf(model);
    const int experts = json[own];
    json[other] = experts;
    EXPECT_TRUE(Parse(json).ok()) << Parse(json).status();
    json.erase(own);
    EXPECT_EQ(Parse(json)->experts, experts);
  }
}

TEST(ModelConfig, TakesTwoNamesOfOneActivation) {
  Json json = ConfigOf("mixtral_tiny");
  json["hidden_act"] = "swish";
  EXPECT_TRUE(Parse(json).ok()) << Parse(json).status();
}

TEST(ModelConfig, TellsAnArchitectureThatIsNotSupportedBeforeAnythingElse) {
  const auto config =
      ModelConfig::Parse(R"({"architectures": ["LlamaForCausalLM"], "vocab_size": NaN})", "config.json");
  EXPECT_EQ(config.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_NE(config.status().message().find("\"LlamaForCausalLM\" is not supported"), std::string::npos)
      << config.status();
}

TEST(ModelConfig, NumbersMoeLayersFromTheBottomAndLeavesOutDenseOnes) {
  EXPECT_EQ(Parse(ConfigOf("olmoe_tiny"))->moe_layers, (std::vector<int>{0, 1, 2, 3}));
  EXPECT_EQ(Parse(ConfigOf("deepseek_tiny"))->moe_layers, (std::vector<int>{1, 2, 3, 4}));
  Json qwen = ConfigOf("qwen2_moe_tiny");
  EXPECT_EQ(Parse(qwen)->moe_layers, (std::vector<int>{0, 1, 3, 4}));
  qwen["decoder_sparse_step"] = 2;
  qwen["mlp_only_layers"] = Json::array();
  EXPECT_EQ(Parse(qwen)->moe_layers, (std::vector<int>{1, 3}));
}

// The numbers of deepseek-ai/DeepSeek-V2-Lite: the softmax's scale is 192^-1/2 (0.1 * 0.707 ln 40 + 1)^2.
TEST(ModelConfig, ScalesLatentAttentionByYarnsMagnitude) {
  Json json = ConfigOf("deepseek_v2_lite_tiny");
  json["qk_nope_head_dim"] = 128;
  json["qk_rope_head_dim"] = 64;
  json["rope_scaling"]["factor"] = 40;
  const auto config = Parse(json);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_NEAR(config->attention_scale, 0.11472138, 1e-7);
  EXPECT_EQ(config->rope_scaling.attention_factor, 1);
  EXPECT_EQ(config->head_dim, 192);
}

// The arithmetic's fields of published models, as their config.json has them.
constexpr char kDeepSeekMoe16B[] = R"({"architectures": ["DeepseekForCausalLM"], "attention_bias": false,
  "aux_loss_alpha": 0.001, "eos_token_id": 100001, "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 2048,
  "intermediate_size": 10944, "max_position_embeddings": 4096, "moe_intermediate_size": 1408, "moe_layer_freq": 1,
  "n_routed_experts": 64, "n_shared_experts": 2, "norm_topk_prob": false, "num_attention_heads": 16,
  "num_experts_per_tok": 6, "num_hidden_layers": 28, "num_key_value_heads": 16, "pretraining_tp": 1, "rms_norm_eps": 1e-06,
  "rope_scaling": null, "rope_theta": 10000, "scoring_func": "softmax", "seq_aux": true, "tie_word_embeddings": false,
  "vocab_size": 102400})";
constexpr char kDeepSeekV2Lite[] = R"({"architectures": ["DeepseekV2ForCausalLM"], "attention_bias": false,
  "aux_loss_alpha": 0.001, "eos_token_id": 100001, "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 2048,
  "intermediate_size": 10944, "kv_lora_rank": 512, "max_position_embeddings": 163840, "moe_intermediate_size": 1408,
  "moe_layer_freq": 1, "n_group": 1, "n_routed_experts": 64, "n_shared_experts": 2, "norm_topk_prob": false,
  "num_attention_heads": 16, "num_experts_per_tok": 6, "num_hidden_layers": 27, "num_key_value_heads": 16,
  "q_lora_rank": null, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06,
  "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
                   "original_max_position_embeddings": 4096, "type": "yarn"},
  "rope_theta": 10000, "routed_scaling_factor": 1.0, "scoring_func": "softmax", "tie_word_embeddings": false,
  "topk_group": 1, "topk_method": "greedy", "v_head_dim": 128, "vocab_size": 102400})";
constexpr char kQwen15Moe[] = R"({"architectures": ["Qwen2MoeForCausalLM"], "decoder_sparse_step": 1,
  "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 5632,
  "max_position_embeddings": 8192, "max_window_layers": 21, "moe_intermediate_size": 1408, "norm_topk_prob": false,
  "num_attention_heads": 16, "num_experts": 60, "num_experts_per_tok": 4, "num_hidden_layers": 24,
  "num_key_value_heads": 16, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "shared_expert_intermediate_size": 5632,
  "sliding_window": 32768, "tie_word_embeddings": false, "use_sliding_window": false, "vocab_size": 151936})";

TEST(ModelConfig, ReadsPublishedModels) {
  const auto deepseek = ModelConfig::Parse(kDeepSeekMoe16B, "config.json");
  ASSERT_TRUE(deepseek.ok()) << deepseek.status();
  EXPECT_EQ(deepseek->moe_layers.size(), 27u);
  EXPECT_EQ(deepseek->moe_layers.front(), 1);
  EXPECT_EQ(deepseek->shared_intermediate_size, 2816);
  EXPECT_EQ(deepseek->dense_intermediate_size, 10944);
  EXPECT_EQ(deepseek->head_dim, 128);
  const auto lite = ModelConfig::Parse(kDeepSeekV2Lite, "config.json");
  ASSERT_TRUE(lite.ok()) << lite.status();
  EXPECT_EQ(lite->moe_layers.size(), 26u);
  EXPECT_EQ(lite->value_dim, 128);
  EXPECT_EQ(lite->latent->query_rank, 0);
  EXPECT_NEAR(lite->attention_scale, 0.11472138, 1e-7);
  const auto qwen = ModelConfig::Parse(kQwen15Moe, "config.json");
  ASSERT_TRUE(qwen.ok()) << qwen.status();
  EXPECT_EQ(qwen->moe_layers.size(), 24u);
  EXPECT_TRUE(qwen->qkv_bias);
  EXPECT_FALSE(qwen->output_bias);
  EXPECT_EQ(qwen->dense_intermediate_size, 0);
}

}  // namespace
}  // namespace c3po
