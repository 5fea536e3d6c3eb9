#ifndef C3PO_SERVER_MODEL_CONFIG_ROPE_SCALING_H_
#define C3PO_SERVER_MODEL_CONFIG_ROPE_SCALING_H_

namespace c3po {

// How a rotary embedding's frequencies w_i = theta^(-2i / rope_dim) were stretched to a longer context window. c is the
// window of the pretraining ("original_max_position_embeddings"), s the factor.
//   linear  w_i / s
//   llama3  w_i where a wave is shorter than c / high_frequency_factor, w_i / s where it is longer than
//           c / low_frequency_factor, blended linearly in c / wavelength between them
//   yarn    (https://arxiv.org/abs/2309.00071, section 3.2) w_i / s and w_i blended by a ramp over i, between the
//           dimensions that turn beta_fast and beta_slow times within c; cos and sin times attention_factor
struct RopeScaling {
  enum class Type { kNone, kLinear, kLlama3, kYarn };
  Type type = Type::kNone;
  double factor = 1;            // s >= 1
  double original_context = 0;  // c, positions
  double low_frequency_factor = 1, high_frequency_factor = 4;
  double beta_fast = 32, beta_slow = 1;
  double attention_factor = 1;
};

// YaRN's temperature: 1 for s <= 1, else 0.1 m ln(s) + 1.
double YarnMagnitude(double factor, double m);

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_CONFIG_ROPE_SCALING_H_
