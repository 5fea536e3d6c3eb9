#include "server/text/jinja_reply.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "index/base/json_nesting.h"

namespace c3po {

absl::StatusOr<JinjaReply> ParseJinjaReply(absl::string_view json) {
  using Kind = JinjaReply::Kind;
  const absl::Status wrong = absl::InvalidArgumentError("is no reply of the chat templates' renderer");
  if (NestsDeeperThan(json, 1)) return wrong;
  nlohmann::json value = nlohmann::json::parse(json.begin(), json.end(), nullptr, /*allow_exceptions=*/false);
  if (!value.is_object() || value.size() != 1 || !value.begin()->is_string()) return wrong;
  for (const auto& [name, kind] : {std::pair("ready", Kind::kReady),
                                   {"missing", Kind::kMissing},
                                   {"prompt", Kind::kPrompt},
                                   {"refused", Kind::kRefused},
                                   {"failed", Kind::kFailed},
                                   {"malformed", Kind::kMalformed},
                                   {"too_long", Kind::kTooLong},
                                   {"no_memory", Kind::kNoMemory}}) {
    if (value.begin().key() == name) return JinjaReply{kind, std::move(value.begin()->get_ref<std::string&>())};
  }
  return wrong;
}

}  // namespace c3po
