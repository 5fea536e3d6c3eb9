#include "server/model/config/gguf_model.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "index/base/status_macros.h"
#include "server/model/config/gguf_config.h"
#include "server/model/config/tensor_plan.h"
#include "server/weights/gguf_blocks.h"
#include "server/weights/gguf_parts.h"

namespace c3po {
namespace {

using Views = std::map<std::string, TensorView, std::less<>>;

struct Renamed {
  absl::string_view from;
  absl::string_view to;
};
constexpr Renamed kOutside[] = {
    {"token_embd.weight", "model.embed_tokens.weight"},
    {"output_norm.weight", "model.norm.weight"},
    {"output.weight", "lm_head.weight"},
};
// After "blk.N.", after "model.layers.N."; in every family alike.
constexpr Renamed kOfLayer[] = {
    {"attn_norm.weight", "input_layernorm.weight"},
    {"ffn_norm.weight", "post_attention_layernorm.weight"},
    {"attn_q.weight", "self_attn.q_proj.weight"},
    {"attn_q.bias", "self_attn.q_proj.bias"},
    {"attn_k.weight", "self_attn.k_proj.weight"},
    {"attn_k.bias", "self_attn.k_proj.bias"},
    {"attn_v.weight", "self_attn.v_proj.weight"},
    {"attn_v.bias", "self_attn.v_proj.bias"},
    {"attn_output.weight", "self_attn.o_proj.weight"},
    {"attn_output.bias", "self_attn.o_proj.bias"},
    {"attn_q_norm.weight", "self_attn.q_norm.weight"},
    {"attn_k_norm.weight", "self_attn.k_norm.weight"},
    {"attn_q_a.weight", "self_attn.q_a_proj.weight"},
    {"attn_q_a.bias", "self_attn.q_a_proj.bias"},
    {"attn_q_a_norm.weight", "self_attn.q_a_layernorm.weight"},
    {"attn_q_b.weight", "self_attn.q_b_proj.weight"},
    {"attn_kv_a_mqa.weight", "self_attn.kv_a_proj_with_mqa.weight"},
    {"attn_kv_a_mqa.bias", "self_attn.kv_a_proj_with_mqa.bias"},
    {"attn_kv_a_norm.weight", "self_attn.kv_a_layernorm.weight"},
    {"attn_kv_b.weight", "self_attn.kv_b_proj.weight"},
    {"attn_k_b.weight", "self_attn.k_b_proj.weight"},
    {"attn_v_b.weight", "self_attn.v_b_proj.weight"},
    {"ffn_gate.weight", "mlp.gate_proj.weight"},
    {"ffn_up.weight", "mlp.up_proj.weight"},
    {"ffn_down.weight", "mlp.down_proj.weight"},
};
constexpr char kFused[] = "attn_qkv.";
constexpr Renamed kPaired[] = {
    {"attn_q.weight", "self_attn.q_proj.paired.weight"},
    {"attn_q.bias", "self_attn.q_proj.paired.bias"},
    {"attn_k.weight", "self_attn.k_proj.paired.weight"},
    {"attn_k.bias", "self_attn.k_proj.paired.bias"},
};

template <size_t size>
absl::string_view Find(const Renamed (&rows)[size], absl::string_view name) {
  const auto* const found = std::find_if(rows, rows + size, [name](const Renamed& row) { return row.from == name; });
  return found == rows + size ? "" : found->to;
}

using Parts = std::vector<std::unique_ptr<GgufFile>>;

// Null: no part has it.
const TensorView* FindTensor(const Parts& parts, absl::string_view name) {
  for (const auto& part : parts) {
    if (const auto found = part->tensors().find(name); found != part->tensors().end()) return &found->second;
  }
  return nullptr;
}

// Rows [begin, begin + count) of a matrix, entries of a vector.
TensorView Slice(const TensorView& whole, int64_t begin, int64_t count) {
  TensorView slice = whole;
  const size_t bytes = whole.bytes.size() / static_cast<size_t>(whole.shape[0]);
  slice.shape[0] = count;
  slice.bytes = whole.bytes.subspan(static_cast<size_t>(begin) * bytes, static_cast<size_t>(count) * bytes);
  return slice;
}

class Naming {
 public:
  // Experts of a GGUF file are shown one by one.
  Naming(const GgufFamily& family, const Parts& parts) : family_(family), parts_(parts) {
    names_ = ChooseNames(family.family, [](const std::string& name) { return absl::StrContains(name, "experts.0."); });
  }

  // Shows one tensor of a file under its name, or names.
  absl::Status Show(const GgufFile& file, const std::string& name, const TensorView& view, Views& views) const {
    if (view.shape.size() < 2 && IsBlockType(view.dtype)) {
      return absl::InvalidArgumentError(absl::StrCat(file.path(), ": tensor ", Quoted(name), ": a vector of type ",
                                                     DTypeName(view.dtype), " is not taken"));
    }
    absl::string_view rest = name;
    if (const absl::string_view to = Find(kOutside, name); !to.empty()) return Add(std::string(to), view, views);
    // Its numbers are in the configuration.
    if (name == kGgufRopeDivisors && family_.family == ModelConfig::Family::kMixtral) return absl::OkStatus();
    if (!absl::ConsumePrefix(&rest, "blk.")) return Unknown(file, name);
    const absl::string_view layer = rest.substr(0, std::min(rest.find('.'), rest.size()));
    if (layer.empty() || !std::all_of(layer.begin(), layer.end(), absl::ascii_isdigit)) return Unknown(file, name);
    rest.remove_prefix(std::min(rest.size(), layer.size() + 1));
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    if (absl::StartsWith(rest, kFused)) return ShowFused(file, name, layer, view, views);
    if (family_.paired_heads) {
      if (const absl::string_view to = Find(kPaired, rest); !to.empty())
        return Add(absl::StrCat(prefix, to), view, views);
    }
    if (const absl::string_view to = Find(kOfLayer, rest); !to.empty())
      return Add(absl::StrCat(prefix, to), view, views);
    if (rest == "ffn_gate_inp.weight") return Add(absl::StrCat(prefix, names_.router), view, views);
    if (names_.shared_prefix != nullptr) {
      const std::string shared = absl::StrCat(prefix, names_.shared_prefix);
      if (rest == "ffn_gate_shexp.weight") return Add(shared + kGatedNetwork.gate, view, views);
      if (rest == "ffn_up_shexp.weight") return Add(shared + kGatedNetwork.up, view, views);
      if (rest == "ffn_down_shexp.weight") return Add(shared + kGatedNetwork.down, view, views);
      if (rest == "ffn_gate_inp_shexp.weight") {
        TensorView row = view;
        if (row.shape.size() == 1) row.shape.insert(row.shape.begin(), 1);
        return Add(shared + "_gate.weight", row, views);
      }
    }
    for (const auto& [from, part] :
         {std::pair{"ffn_gate_exps.weight", names_.gate}, std::pair{"ffn_up_exps.weight", names_.up},
          std::pair{"ffn_down_exps.weight", names_.down}}) {
      if (rest == from) return AddExperts(file, name, prefix, part, view, views);
    }
    return Unknown(file, name);
  }

 private:
  static absl::Status Unknown(const GgufFile& file, const std::string& name) {
    return absl::UnimplementedError(
        absl::StrCat(file.path(), ": tensor ", Quoted(name), " is not supported in this architecture"));
  }

  static absl::Status Add(std::string name, const TensorView& view, Views& views) {
    if (views.size() == kSafetensorsTensorsMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", Quoted(name), ": one too many: at most ", kSafetensorsTensorsMax, " are taken"));
    }
    if (views.emplace(name, view).second) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("tensor ", Quoted(name), " appears twice"));
  }

  // attn_qkv: the rows of attn_q, attn_k and attn_v one below the other. Queries are as wide as what attn_output takes.
  absl::Status ShowFused(const GgufFile& file, const std::string& name, absl::string_view layer, const TensorView& view,
                         Views& views) const {
    const TensorView* const out = FindTensor(parts_, absl::StrCat("blk.", layer, ".attn_output.weight"));
    if (family_.family == ModelConfig::Family::kDeepseekV2 || out == nullptr || out->shape.size() != 2 ||
        view.shape.empty()) {
      return Unknown(file, name);
    }
    const int64_t query = out->shape[1], key = (view.shape[0] - query) / 2;
    if (key <= 0 || query + 2 * key != view.shape[0]) {
      return absl::InvalidArgumentError(absl::StrCat(file.path(), ": tensor ", Quoted(name), ": ", view.shape[0],
                                                     " rows are none of ", query,
                                                     " of queries and as many keys as values"));
    }
    const std::string base = absl::StrCat("blk.", layer, ".");
    const absl::string_view kind = absl::string_view(name).substr(base.size() + sizeof kFused - 1);
    C3PO_RETURN_IF_ERROR(Show(file, absl::StrCat(base, "attn_q.", kind), Slice(view, 0, query), views));
    C3PO_RETURN_IF_ERROR(Show(file, absl::StrCat(base, "attn_k.", kind), Slice(view, query, key), views));
    return Show(file, absl::StrCat(base, "attn_v.", kind), Slice(view, query + key, key), views);
  }

  absl::Status AddExperts(const GgufFile& file, const std::string& name, const std::string& prefix, const char* part,
                          const TensorView& view, Views& views) const {
    if (view.shape.size() != 3 || view.shape[0] > kExpertsMax) {
      return absl::InvalidArgumentError(absl::StrCat(file.path(), ": tensor ", Quoted(name), ": shape ",
                                                     ShapeString(view.shape), " is none of at most ", kExpertsMax,
                                                     " experts"));
    }
    const auto experts = static_cast<size_t>(view.shape[0]);
    const size_t bytes = view.bytes.size() / experts;
    for (size_t e = 0; e < experts; ++e) {
      const TensorView expert{view.dtype, {view.shape[1], view.shape[2]}, view.bytes.subspan(e * bytes, bytes)};
      C3PO_RETURN_IF_ERROR(Add(absl::StrCat(prefix, names_.expert_prefix, e, part), expert, views));
    }
    return absl::OkStatus();
  }

  static constexpr int64_t kExpertsMax = 1 << 14;

  const GgufFamily family_;
  const Parts& parts_;
  TensorNames names_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> OpenGgufModel(const std::string& path) {
  C3PO_ASSIGN_OR_RETURN(auto opened, OpenGgufParts(path));
  const auto parts = std::make_shared<const Parts>(std::move(opened));
  C3PO_ASSIGN_OR_RETURN(const GgufFamily family, FamilyOfGguf(*parts->front()));
  const Naming naming(family, *parts);
  Views views;
  for (const auto& part : *parts) {
    for (const auto& [name, view] : part->tensors()) C3PO_RETURN_IF_ERROR(naming.Show(*part, name, view, views));
  }
  const auto find = [&parts](absl::string_view name) { return FindTensor(*parts, name); };
  C3PO_ASSIGN_OR_RETURN(std::string config, ConfigOfGguf(*parts->front(), find));
  return Checkpoint::Of(path, std::move(config), std::move(views), parts);
}

}  // namespace c3po
