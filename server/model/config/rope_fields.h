#ifndef C3PO_SERVER_MODEL_CONFIG_ROPE_FIELDS_H_
#define C3PO_SERVER_MODEL_CONFIG_ROPE_FIELDS_H_

#include "server/model/config/config_fields.h"
#include "server/model/config/model_config.h"

namespace c3po {

// Reads the rotary embedding of a config.json into `config`: rope_theta, and one of rope_scaling (transformers up to
// 4.57) and rope_parameters (from 5.0 on). `config` holds the family's default theta, context_window and latent, and
// attention_scale, which YaRN's magnitude multiplies in latent attention.
//
// Where the two versions read one field differently, this is 5.24's reading: rope_theta and
// original_max_position_embeddings count inside the object and outside of it. Fields that contradict each other are
// refused: versions disagree on which one counts. Errors go to `fields`.
void ReadRope(ConfigFields& fields, ModelConfig& config);

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_CONFIG_ROPE_FIELDS_H_
