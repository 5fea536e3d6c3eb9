#include "server/grammar/form_check.h"

#include <array>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/text/utf8.h"

namespace c3po {
namespace {

using Json = nlohmann::json;

// Those of JSON Schema (draft 2020-12, and what earlier drafts call otherwise) that xgrammar passes over in silence.
constexpr std::array kIgnored = {
    "not",         "if",       "then",        "else",        "dependentRequired", "dependentSchemas", "dependencies",
    "uniqueItems", "contains", "minContains", "maxContains", "$dynamicRef",       "$recursiveRef"};
// Keywords whose value is a schema, a list of schemas, an object of schemas.
constexpr std::array kOfSchema = {
    "items", "additionalItems", "additionalProperties", "unevaluatedProperties", "unevaluatedItems", "propertyNames"};
constexpr std::array kOfSchemas = {"anyOf", "oneOf", "allOf", "prefixItems"};
constexpr std::array kOfNamedSchemas = {"properties", "patternProperties", "$defs", "definitions"};
// The first of these that a schema has decides, and further constraints beside it would not hold.
constexpr std::array kWhole = {"$ref", "const", "enum", "anyOf", "oneOf", "allOf"};
// One of these says which keywords count; where there is none, any value is taken.
constexpr std::array kTyped = {"type",  "properties",  "additionalProperties", "unevaluatedProperties",
                               "items", "prefixItems", "unevaluatedItems"};
// Beside them these say nothing about the value.
constexpr std::array kAnnotations = {"title",    "description", "default",      "examples", "deprecated",
                                     "readOnly", "writeOnly",   "$comment",     "$schema",  "$id",
                                     "$defs",    "definitions", "discriminator"};

template <size_t kCount>
bool IsOneOf(const std::string& word, const std::array<const char*, kCount>& words) {
  for (const char* other : words) {
    if (word == other) return true;
  }
  return false;
}

// A type beside constants is theirs in every schema that can be met.
bool MayStandBeside(const std::string& whole, const std::string& key) {
  return IsOneOf(key, kAnnotations) || (key == "type" && (whole == "const" || whole == "enum"));
}

absl::Status Refuse(const std::string& path, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("structured_output.json_schema: ", path, " ", what));
}

absl::Status CheckSchema(const Json& schema, const std::string& path) {
  if (!schema.is_object()) return absl::OkStatus();  // True and false; what is no schema is told by whoever compiles.
  for (const auto& [key, value] : schema.items()) {
    const std::string at = absl::StrCat(path, "/", key);
    if (IsOneOf(key, kIgnored)) return Refuse(at, "is a keyword that this server cannot hold answers to");
    if (IsOneOf(key, kOfSchema)) C3PO_RETURN_IF_ERROR(CheckSchema(value, at));
    if (!IsOneOf(key, kOfSchemas) && !IsOneOf(key, kOfNamedSchemas)) continue;
    if (!value.is_structured()) continue;
    for (const auto& [name, one] : value.items()) C3PO_RETURN_IF_ERROR(CheckSchema(one, absl::StrCat(at, "/", name)));
  }
  for (const char* whole : kWhole) {
    if (!schema.contains(whole)) continue;
    for (const auto& [key, value] : schema.items()) {
      if (key == whole || MayStandBeside(whole, key)) continue;
      return Refuse(absl::StrCat(path, "/", key), absl::StrCat("cannot be held beside ", whole));
    }
    return absl::OkStatus();
  }
  for (const char* key : kTyped) {
    if (schema.contains(key)) return absl::OkStatus();
  }
  for (const auto& [key, value] : schema.items()) {
    if (!IsOneOf(key, kAnnotations))
      return Refuse(absl::StrCat(path, "/", key), "cannot be held without a type beside it");
  }
  return absl::OkStatus();
}

absl::Status CheckJsonSchema(const std::string& text) {
  int depth = 0;
  bool too_deep = false;
  const auto watch = [&](int, Json::parse_event_t event, Json&) {
    using Event = Json::parse_event_t;
    if (event == Event::object_start || event == Event::array_start) too_deep = too_deep || ++depth > kSchemaDepthMax;
    if (event == Event::object_end || event == Event::array_end) --depth;
    return !too_deep;
  };
  const Json schema = Json::parse(text, watch, /*allow_exceptions=*/false);
  if (too_deep) return Refuse("its JSON", absl::StrCat("is nested deeper than ", kSchemaDepthMax));
  if (schema.is_discarded()) return Refuse("it", "is not JSON");
  if (!schema.is_object() && !schema.is_boolean()) return Refuse("it", "must be an object, true or false");
  return CheckSchema(schema, "#");
}

absl::Status CheckText(const std::string& field, const std::string& text) {
  if (text.empty()) return absl::InvalidArgumentError(absl::StrCat(field, ": must not be empty"));
  if (!IsValidUtf8(text)) return absl::InvalidArgumentError(absl::StrCat(field, ": is not UTF-8"));
  if (text.find('\0') != std::string::npos) return absl::InvalidArgumentError(absl::StrCat(field, ": has a NUL"));
  return absl::OkStatus();
}

}  // namespace

std::string FieldOf(const AnswerForm& form) {
  switch (form.kind) {
    case AnswerForm::Kind::kJsonObject:
      return "structured_output.json_object";
    case AnswerForm::Kind::kJsonSchema:
      return "structured_output.json_schema";
    case AnswerForm::Kind::kRegex:
      return "structured_output.regex";
    case AnswerForm::Kind::kGrammar:
      return "structured_output.grammar";
    case AnswerForm::Kind::kOneOf:
      return "structured_output.one_of";
  }
  return "structured_output";
}

absl::Status CheckForm(const AnswerForm& form) {
  const std::string field = FieldOf(form);
  if (form.kind == AnswerForm::Kind::kJsonObject) return absl::OkStatus();
  if (form.kind == AnswerForm::Kind::kOneOf && (form.texts.empty() || form.texts.size() > kFormTextsMax)) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ".texts: ", form.texts.size(), " texts are not in [1, ", kFormTextsMax, "]"));
  }
  size_t bytes = form.text.size();
  for (const std::string& text : form.texts) bytes += text.size();
  if (bytes > kFormBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(field, ": ", bytes, " bytes are more than ", kFormBytesMax));
  }
  if (form.kind == AnswerForm::Kind::kOneOf) {
    for (size_t i = 0; i < form.texts.size(); ++i) {
      C3PO_RETURN_IF_ERROR(CheckText(absl::StrCat(field, ".texts[", i, "]"), form.texts[i]));
    }
    return absl::OkStatus();
  }
  C3PO_RETURN_IF_ERROR(CheckText(field, form.text));
  return form.kind == AnswerForm::Kind::kJsonSchema ? CheckJsonSchema(form.text) : absl::OkStatus();
}

}  // namespace c3po
