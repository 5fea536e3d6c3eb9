#include "server/model/config/quantization_config.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr char kField[] = "quantization_config", kMethod[] = "compressed-tensors", kFormat[] = "pack-quantized";

// Fields that were not asked for are options that nobody here knows.
void RefuseRest(ConfigFields& fields) {
  for (const std::string& name : fields.NotAsked()) fields.Require(name, {});
}

// `name` is there and this text.
void RequireText(ConfigFields& fields, const char* name, const std::string& text) {
  if (const std::string value = fields.TextOr(name, ""); value != text) {
    fields.Refuse(name, absl::StrCat("\"", value, "\" in place of \"", text, "\""));
  }
}

PackedFormat ReadWeights(ConfigFields& weights) {
  PackedFormat format;
  format.bits = weights.Dimension("num_bits");
  if (format.bits != 4 && format.bits != 8) weights.Require("num_bits", {"4", "8"});
  if (weights.Has("type")) RequireText(weights, "type", "int");
  if (!weights.FlagOr("symmetric", true)) weights.Require("symmetric", {"true"});
  if (weights.Has("strategy")) RequireText(weights, "strategy", "group");
  // Before the type of the field: -1, and none, are those of other strategies.
  weights.Require("dynamic", {"false"});
  weights.Require("block_structure", {});
  weights.Require("actorder", {"false", "\"weight\"", "\"static\""});  // How levels were found, not how they lie.
  format.group_columns = weights.Dimension("group_size");
  if (format.group_columns != 16 && format.group_columns % 32 != 0) {
    weights.Refuse("group_size", absl::StrCat(format.group_columns, ", neither 16 nor a multiple of 32,"));
  }
  for (const char* described : {"observer", "observer_kwargs", "scale_dtype", "zp_dtype"}) weights.Has(described);
  RefuseRest(weights);
  return format;
}

PackedFormat ReadGroup(ConfigFields& group) {
  group.Texts("targets");
  if (group.Has("format")) RequireText(group, "format", kFormat);
  group.Require("input_activations", {});
  group.Require("output_activations", {});
  if (!group.Has("weights")) group.Fail("weights", "is missing");
  ConfigFields weights = group.Object("weights");
  const PackedFormat format = group.status().ok() ? ReadWeights(weights) : PackedFormat();
  group.Adopt(weights.status());
  RefuseRest(group);
  return format;
}

}  // namespace

std::vector<PackedFormat> ReadPackedFormats(ConfigFields& fields) {
  std::vector<PackedFormat> formats;
  if (!fields.Has(kField)) return formats;
  ConfigFields config = fields.Object(kField);
  RequireText(config, "quant_method", kMethod);
  if (config.status().ok()) RequireText(config, "format", kFormat);
  config.Require("kv_cache_scheme", {});
  config.Require("sparsity_config", {"{}"});
  config.Require("moe_sparsity_config", {"{}"});
  config.Require("transform_config", {"{}"});
  for (const char* described : {"quantization_status", "global_compression_ratio", "version"}) config.Has(described);
  config.Texts("ignore");
  ConfigFields groups = config.Object("config_groups");
  for (const std::string& name : groups.NotAsked()) {
    ConfigFields group = groups.Object(name);
    const PackedFormat format = ReadGroup(group);
    groups.Adopt(group.status());
    if (std::find(formats.begin(), formats.end(), format) == formats.end()) formats.push_back(format);
  }
  if (config.status().ok() && formats.empty()) config.Fail("config_groups", "names no group");
  config.Adopt(groups.status());
  RefuseRest(config);
  fields.Adopt(config.status());
  return formats;
}

absl::StatusOr<std::vector<PackedFormat>> PackedFormatsOf(absl::string_view text, const std::string& path) {
  C3PO_ASSIGN_OR_RETURN(ConfigFields fields, ConfigFields::Parse(text, path));
  std::vector<PackedFormat> formats = ReadPackedFormats(fields);
  C3PO_RETURN_IF_ERROR(fields.status());
  return formats;
}

}  // namespace c3po
