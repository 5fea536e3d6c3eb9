#include "server/rpc/doors/http/answer_constraint.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "index/base/status_macros.h"
#include "server/rpc/doors/field_names.h"

namespace c3po {
namespace {

using Kind = AnswerForm::Kind;

constexpr absl::string_view kFormat = "response_format", kOutputs = "structured_outputs", kTag = "structural_tag";
// Of vLLM before 0.12. Two of the latter only say how others are obeyed.
constexpr absl::string_view kGuided = "guided_";
constexpr absl::string_view kManners[] = {"guided_decoding_backend", "guided_whitespace_pattern"};
// Members of structured_outputs; with "guided_" in front, those of earlier versions.
struct Member {
  absl::string_view name;
  Kind kind;
};
constexpr Member kMembers[] = {{"json", Kind::kJsonSchema},
                               {"regex", Kind::kRegex},
                               {"choice", Kind::kOneOf},
                               {"grammar", Kind::kGrammar},
                               {"json_object", Kind::kJsonObject}};

absl::Status Refuse(absl::string_view field, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", why));
}

// A schema as an object, or as the text of one.
absl::StatusOr<std::string> SchemaOf(const JsonFields& fields, absl::string_view name) {
  const absl::string_view value = fields.Find(name);
  if (KindOf(value) == JsonKind::kText) return TextOf(fields.PathOf(name), value);
  return std::string(value);  // What is no schema is refused where schemas are read.
}

using Found = std::optional<AnswerConstraint>;

absl::Status Add(AnswerConstraint constraint, Found& found) {
  if (found) return Refuse(constraint.field, absl::StrCat("beside ", found->field, "; an answer has one form"));
  found = std::move(constraint);
  return absl::OkStatus();
}

absl::Status ReadMembers(const JsonFields& fields, absl::string_view prefix, Found& found) {
  for (const Member& member : kMembers) {
    const std::string name = absl::StrCat(prefix, member.name);
    if (!fields.Has(name)) continue;
    AnswerConstraint read{{member.kind, "", {}}, fields.PathOf(name)};
    if (member.kind == Kind::kJsonObject) {
      bool wanted = false;
      C3PO_RETURN_IF_ERROR(fields.Read(name, wanted));
      if (!wanted) continue;
    } else if (member.kind == Kind::kJsonSchema) {
      C3PO_ASSIGN_OR_RETURN(read.form.text, SchemaOf(fields, name));
    } else if (member.kind == Kind::kOneOf) {
      C3PO_RETURN_IF_ERROR(fields.ReadTexts(name, read.form.texts));
    } else {
      C3PO_RETURN_IF_ERROR(fields.Read(name, read.form.text));
    }
    C3PO_RETURN_IF_ERROR(Add(std::move(read), found));
  }
  return absl::OkStatus();
}

absl::StatusOr<JsonFields> ObjectAt(const JsonFields& fields, absl::string_view name) {
  const std::string path = fields.PathOf(name);
  if (KindOf(fields.Find(name)) != JsonKind::kObject) return Refuse(path, "must be an object");
  return JsonFields::Parse(fields.Find(name), absl::StrCat(path, "."));
}

absl::Status ReadFormat(const JsonFields& fields, Found& found) {
  if (!fields.Has(kFormat)) return absl::OkStatus();
  C3PO_ASSIGN_OR_RETURN(const JsonFields format, ObjectAt(fields, kFormat));
  std::string type;
  C3PO_RETURN_IF_ERROR(format.Read("type", type));
  if (type == "text") return absl::OkStatus();
  if (type == "json_object") return Add({{Kind::kJsonObject, "", {}}, std::string(kFormat)}, found);
  if (type != "json_schema") return Refuse("response_format.type", "is none of text, json_object, json_schema");
  if (!format.Has("json_schema")) return Refuse("response_format.json_schema", "must be an object");
  C3PO_ASSIGN_OR_RETURN(const JsonFields named, ObjectAt(format, "json_schema"));
  if (!named.Has("schema")) return Refuse(named.PathOf("schema"), "must be an object");
  C3PO_ASSIGN_OR_RETURN(std::string schema, SchemaOf(named, "schema"));
  return Add({{Kind::kJsonSchema, std::move(schema), {}}, named.PathOf("schema")}, found);
}

}  // namespace

std::vector<KnownField> ConstraintFields() {
  static const std::vector<std::string>* const guided = [] {
    auto* names = new std::vector<std::string>();
    for (const Member& member : kMembers) names->push_back(absl::StrCat(kGuided, member.name));
    return names;
  }();
  std::vector<KnownField> known = {
      {kFormat, FieldFate::kRead}, {kOutputs, FieldFate::kRead}, {kTag, FieldFate::kRefused}};
  for (const std::string& name : *guided) known.push_back({name, FieldFate::kRead});
  for (const absl::string_view name : kManners) known.push_back({name, FieldFate::kNoEffect});
  return known;
}

absl::StatusOr<std::optional<AnswerConstraint>> ReadConstraint(const JsonFields& fields) {
  Found found;
  C3PO_RETURN_IF_ERROR(ReadFormat(fields, found));
  C3PO_RETURN_IF_ERROR(ReadMembers(fields, kGuided, found));
  if (fields.Has(kOutputs)) {
    C3PO_ASSIGN_OR_RETURN(const JsonFields members, ObjectAt(fields, kOutputs));
    if (members.Has(kTag)) return Refuse(members.PathOf(kTag), "is not supported by this server");
    C3PO_RETURN_IF_ERROR(ReadMembers(members, "", found));
  }
  return found;
}

absl::Status InWordsOf(const AnswerConstraint& constraint, const absl::Status& status) {
  const FieldName names[] = {{"structured_output.json_object", constraint.field},
                             {"structured_output.json_schema", constraint.field},
                             {"structured_output.regex", constraint.field},
                             {"structured_output.grammar", constraint.field},
                             {"structured_output.one_of.texts", constraint.field},
                             {"structured_output.one_of", constraint.field},
                             {"structured_output", constraint.field}};
  return InTheirWords(status, names);
}

}  // namespace c3po
