#include "server/model/config/rope_fields.h"

#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"

namespace c3po {
namespace {

constexpr char kOriginalContext[] = "original_max_position_embeddings";

std::string ReadType(ConfigFields& rope) {
  if (rope.Differ("rope_type", "type")) rope.Fail("rope_type", "and type contradict each other");
  const std::string older = rope.TextOr("type", "default");
  return rope.TextOr("rope_type", older);
}

// Positions of the pretraining, inside the object or outside of it.
double ReadOriginalContext(ConfigFields& fields, ConfigFields& rope, int context_window) {
  const int outside = fields.DimensionOr(kOriginalContext, context_window);
  const int inside = rope.DimensionOr(kOriginalContext, outside);
  if (fields.Has(kOriginalContext) && inside != outside) {
    rope.Fail(kOriginalContext, absl::StrCat("is ", inside, ", but outside it is ", outside));
  }
  return inside;
}

double ReadTheta(ConfigFields& fields, ConfigFields& rope, double fallback) {
  const double outside = fields.PositiveOr("rope_theta", fallback);
  const double inside = rope.PositiveOr("rope_theta", outside);
  if (fields.Has("rope_theta") && inside != outside) {
    rope.Fail("rope_theta", absl::StrCat("is ", inside, ", but outside it is ", outside));
  }
  return inside;
}

void ReadLlama3(ConfigFields& rope, RopeScaling& scaling) {
  for (const char* name : {"low_freq_factor", "high_freq_factor"}) {
    if (!rope.Has(name)) rope.Fail(name, "is missing");
  }
  scaling.low_frequency_factor = rope.PositiveOr("low_freq_factor", 1);
  scaling.high_frequency_factor = rope.PositiveOr("high_freq_factor", 4);
  if (scaling.high_frequency_factor <= scaling.low_frequency_factor) {
    rope.Fail("high_freq_factor", "must be above low_freq_factor");
  }
}

void ReadYarn(ConfigFields& rope, ModelConfig& config) {
  RopeScaling& scaling = config.rope_scaling;
  scaling.beta_fast = rope.PositiveOr("beta_fast", 32);
  scaling.beta_slow = rope.PositiveOr("beta_slow", 1);
  rope.Require("truncate", {"true"});
  const double mscale = rope.PositiveOr("mscale", 0), all_dim = rope.PositiveOr("mscale_all_dim", 0);
  // DeepSeek's own code and transformers disagree on what one of them alone means.
  if ((mscale > 0) != (all_dim > 0)) rope.Refuse(mscale > 0 ? "mscale" : "mscale_all_dim", "without the other");
  const double inferred = mscale > 0 ? YarnMagnitude(scaling.factor, mscale) / YarnMagnitude(scaling.factor, all_dim)
                                     : YarnMagnitude(scaling.factor, 1);
  scaling.attention_factor = rope.PositiveOr("attention_factor", inferred);
  if (config.latent && all_dim > 0) config.attention_scale *= std::pow(YarnMagnitude(scaling.factor, all_dim), 2);
}

// Of the type "default" these change nothing: saved models keep them where a scaling was switched off.
void PassOverOtherTypes(ConfigFields& rope) {
  for (const char* name : {kOriginalContext, "attention_factor", "beta_fast", "beta_slow", "low_freq_factor",
                           "high_freq_factor", "mscale", "mscale_all_dim", "truncate"}) {
    rope.Has(name);
  }
  rope.Require("factor", {"1"});
}

void ReadScaling(ConfigFields& fields, ConfigFields& rope, ModelConfig& config) {
  RopeScaling& scaling = config.rope_scaling;
  const std::string type = ReadType(rope);
  config.rope_theta = ReadTheta(fields, rope, config.rope_theta);
  rope.Require("partial_rotary_factor", {"1"});
  if (type != "default") {
    scaling.factor = rope.PositiveOr("factor", 0);
    if (scaling.factor < 1) rope.Fail("factor", "must be a number of at least 1");
  }
  if (type == "llama3" || type == "yarn") {
    scaling.original_context = ReadOriginalContext(fields, rope, config.context_window);
  }
  if (type == "linear") {
    scaling.type = RopeScaling::Type::kLinear;
  } else if (type == "llama3") {
    scaling.type = RopeScaling::Type::kLlama3;
    ReadLlama3(rope, scaling);
  } else if (type == "yarn") {
    scaling.type = RopeScaling::Type::kYarn;
    if (config.rope_theta <= 1) rope.Fail("rope_theta", "must be above 1 for the type \"yarn\"");
    ReadYarn(rope, config);
  } else if (type == "default") {
    PassOverOtherTypes(rope);
  } else {
    rope.Refuse("rope_type", absl::StrCat("\"", type, "\""));
  }
  for (const std::string& unknown : rope.NotAsked()) {
    rope.Refuse(unknown, absl::StrCat("for the type \"", type, "\""));
  }
}

}  // namespace

double YarnMagnitude(double factor, double m) { return factor <= 1 ? 1 : 0.1 * m * std::log(factor) + 1; }

void ReadRope(ConfigFields& fields, ModelConfig& config) {
  if (fields.Differ("rope_scaling", "rope_parameters")) {
    fields.Fail("rope_parameters", "and rope_scaling contradict each other");
  }
  ConfigFields rope = fields.Object(fields.Has("rope_parameters") ? "rope_parameters" : "rope_scaling");
  ReadScaling(fields, rope, config);
  fields.Adopt(rope.status());
}

}  // namespace c3po
