#ifndef C3PO_SERVER_MODEL_CONFIG_GGUF_MODEL_H_
#define C3PO_SERVER_MODEL_CONFIG_GGUF_MODEL_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/weights/checkpoint.h"

namespace c3po {

// A GGUF file, or the parts of a split one (OpenGgufParts), as a checkpoint: its tensors under the names that
// VisitTensors asks for, its metadata as config.json (ConfigOfGguf). Nothing is read but headers, and nothing copied:
//   blk.N.ffn_{gate,up,down}_exps [E, ...]  one matrix for each expert
//   blk.N.attn_{q,k} of paired heads        q_proj.paired, k_proj.paired
//   blk.N.attn_{k,v}_b                      k_b_proj, transposed by heads, and v_b_proj
//   blk.N.attn_qkv                          q_proj, k_proj, v_proj, of its rows in this order
//   blk.N.ffn_gate_inp_shexp [d]            shared_expert_gate [1, d]
// Errors are those of OpenGgufParts and ConfigOfGguf; Unimplemented names a tensor that no family has;
// InvalidArgument names a vector of blocks, experts that are no three-dimensional tensor, or attn_qkv of other rows.
absl::StatusOr<std::unique_ptr<Checkpoint>> OpenGgufModel(const std::string& path);

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_CONFIG_GGUF_MODEL_H_
