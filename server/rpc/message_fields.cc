#include "server/rpc/message_fields.h"

#include <algorithm>
#include <limits>

#include "index/base/status_macros.h"

namespace c3po {

absl::Status ToInt(absl::string_view field, uint32_t value, int& out) {
  if (value > static_cast<uint32_t>(std::numeric_limits<int32_t>::max()))
    return absl::InvalidArgumentError(absl::StrCat(field, ": ", value, " is too large"));
  out = static_cast<int>(value);
  return absl::OkStatus();
}

absl::Status ReadLayers(absl::string_view field, const google::protobuf::RepeatedField<uint32_t>& layers,
                        std::vector<int>& out) {
  out.clear();
  for (int i = 0; i < layers.size(); ++i) {
    C3PO_RETURN_IF_ERROR(ToInt(absl::StrCat(field, "[", i, "]"), layers.Get(i), out.emplace_back()));
  }
  std::sort(out.begin(), out.end());
  return absl::OkStatus();
}

}  // namespace c3po
