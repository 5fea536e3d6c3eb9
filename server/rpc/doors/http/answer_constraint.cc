#include "server/rpc/doors/http/answer_constraint.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr absl::string_view kFormat = "response_format";
// With the fields of vLLM before 0.12. Two of them only say how others are obeyed.
constexpr absl::string_view kConstraints[] = {"structured_outputs", "guided_json",    "guided_regex",
                                              "guided_choice",      "guided_grammar", "guided_json_object",
                                              "structural_tag"};
constexpr absl::string_view kManners[] = {"guided_decoding_backend", "guided_whitespace_pattern"};

absl::Status Refuse(absl::string_view field) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": this server does not constrain answers"));
}

absl::Status CheckFormat(const JsonFields& fields) {
  const absl::string_view format = fields.Find(kFormat);
  if (format.empty()) return absl::OkStatus();
  if (KindOf(format) != JsonKind::kObject)
    return absl::InvalidArgumentError(absl::StrCat(kFormat, ": must be an object"));
  C3PO_ASSIGN_OR_RETURN(const JsonFields members, JsonFields::Parse(format, absl::StrCat(kFormat, ".")));
  std::string type;
  C3PO_RETURN_IF_ERROR(members.Read("type", type));
  return type == "text" ? absl::OkStatus() : Refuse(kFormat);
}

}  // namespace

std::vector<KnownField> ConstraintFields() {
  std::vector<KnownField> known = {{kFormat, FieldFate::kRead}};
  for (const absl::string_view name : kConstraints) known.push_back({name, FieldFate::kRead});
  for (const absl::string_view name : kManners) known.push_back({name, FieldFate::kNoEffect});
  return known;
}

absl::Status ReadConstraint(const JsonFields& fields) {
  C3PO_RETURN_IF_ERROR(CheckFormat(fields));
  for (const absl::string_view name : kConstraints) {
    if (fields.Has(name) && fields.Find(name) != "false") return Refuse(name);
  }
  return absl::OkStatus();
}

}  // namespace c3po
